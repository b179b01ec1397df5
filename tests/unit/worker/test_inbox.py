"""How a worker learns of its streams' inputs."""

from __future__ import annotations

import asyncio
from typing import Any, cast
from uuid import uuid4

import pytest

from baton.worker.inbox import InputRecords
from baton.worker.records import Records


class LastingRecords:
    """Records whose statements never return."""

    async def run(self, _work: Any) -> Any:
        await asyncio.Event().wait()


async def test_a_read_that_is_cancelled_does_not_forget_the_notification() -> None:
    inputs = InputRecords(cast("Records", LastingRecords()), uuid4(), 0)
    inputs.hint()
    reading = asyncio.create_task(inputs.read(0))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert inputs.has(0)
