"""Which paths below `/v1/stream/` are ids of streams."""

from __future__ import annotations

import pytest

from baton.api.durable_paths import is_id


def test_ids_of_streams_are_ids() -> None:
    made = "019a5e2c-7d10-7abc-9def-0123456789ab"
    assert is_id(made)
    assert is_id(made.upper())


OTHERS = ("9b2f3a52-1f5e-4c6e-8f0a-5d2c1b7e9a10", "9b2f3a52-1f5e-11f1-8f0a-5d2c1b7e9a10", "0" * 32, "chat/1", "")


@pytest.mark.parametrize("path", OTHERS)
def test_other_uuids_and_digests_are_ordinary_paths(path: str) -> None:
    assert not is_id(path)
