"""Which paths below `/v1/stream/` are ids of streams."""

from __future__ import annotations

import uuid

from baton.api.durable_paths import is_id


def test_ids_of_streams_are_ids() -> None:
    made = "019a5e2c-7d10-7abc-9def-0123456789ab"
    assert is_id(made)
    assert is_id(made.upper())


def test_other_uuids_and_digests_are_ordinary_paths() -> None:
    for path in (str(uuid.uuid4()), str(uuid.uuid1()), uuid.uuid4().hex, "chat/1", "0" * 32, ""):
        assert not is_id(path), path
