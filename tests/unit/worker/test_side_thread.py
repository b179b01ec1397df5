"""The thread beside the event loop."""

from __future__ import annotations

import pytest

from baton.worker.side_thread import Owner, SideThread


async def test_a_service_of_the_side_thread_that_fails_ends_its_owner() -> None:
    async def fail(_owner: Owner) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await SideThread(fail).run()
