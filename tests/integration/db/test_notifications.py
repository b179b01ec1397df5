"""The largest notification: Postgres takes it."""

from __future__ import annotations

import uuid
from collections.abc import Container

import asyncpg
import pytest
from tests.support.logbook import connected, until
from tests.support.wire import batch_of

from baton.db import notifications
from baton.db.notifications import MAX_BYTES, TRAILER_BYTES, pack, unpack
from baton.db.signing_keys import SigningKeys


class Everybody(Container[str]):
    def __contains__(self, _stream: object) -> bool:
        return True


EVERYBODY = Everybody()
NOW = 1_764_000_000.125
LONG = SigningKeys({2**31 - 1: b"k" * 32}, "0123abcd/00000001")  # no signature is longer


async def test_postgres_accepts_the_largest_payload(dsn: str) -> None:
    heard: list[str] = []
    stream_id = uuid.uuid4()
    head = len(f"{stream_id.hex} 1 1 e7950\n") + TRAILER_BYTES
    fits, does_not = batch_of(stream_id, MAX_BYTES - head), batch_of(stream_id, MAX_BYTES - head + 1)
    async with connected(dsn) as listening, connected(dsn) as sending:
        await listening.add_listener("baton_events", lambda *given: heard.append(str(given[-1])))
        await notifications.notify(
            sending, notifications.EVENTS_CHANNEL, [*pack([fits], NOW, LONG), *pack([does_not], NOW, LONG)]
        )
        await until(lambda: len(heard) == 2)
        assert len(heard[0].encode()) == MAX_BYTES
        with pytest.raises(asyncpg.InvalidParameterValueError):
            await notifications.notify(sending, notifications.EVENTS_CHANNEL, [heard[0] + "x"])
    first, second = (next(unpack(payload, EVERYBODY)) for payload in heard)
    assert first.events == fits.events.decode()
    assert second.events is None
