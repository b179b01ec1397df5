"""What a pod does with a group of appends whose connection is lost."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from tests.support.external import request, texts
from tests.support.hints import sending

from baton.db.external_appends import State
from baton.pod.append_queue import AppendQueue
from baton.settings import Settings

NOWHERE = "postgresql://nowhere/none"


async def test_an_append_that_was_put_back_before_the_connection_was_lost_waits_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = AppendQueue(Settings(database_url=NOWHERE), sending(NOWHERE))
    stream_id = uuid4()
    # The pod's memory of the stream may be old: append 0 of `a` is written before, and what follows is put back.
    known = {"a": (0, 0), "": (0, 0), "b": None}
    queue._states[stream_id] = State(carries_events=True, tail=1, producers=2, known=known)
    asked = [
        request(stream_id, texts("new"), by=("b", 0, 0)),
        request(stream_id, texts("repeated"), by=("a", 0, 0)),
        request(stream_id, texts("once")),
    ]
    waiting = [asyncio.create_task(queue.append(each)) for each in asked]
    await asyncio.sleep(0)

    async def lost(*_: Any) -> Any:
        raise ConnectionResetError

    monkeypatch.setattr(queue, "_write", lost)
    with pytest.raises(ConnectionResetError):
        await queue._answer(None, queue._next_group())  # type: ignore[arg-type]
    assert [item.request for item in queue._waiting] == asked
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
