"""Where a client of the AI SDK's dialect can begin that has none of the chunks before."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.support.wire import batches
from tests.unit.dialects.test_aisdk import CASES, read

from baton.dialects.aisdk_places import Places

STARTS = {"text-start", "reasoning-start", "tool-input-start"}
# What the SDK can show without anything before it: it makes a part of a whole input.
WHOLE = {"tool-input-available", "tool-input-error"}


def frames(*chunks: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n" for chunk in chunks)


def orphans(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chunks of parts that did not begin among them."""
    begun: set[str] = set()
    found = []
    for chunk in chunks:
        part = chunk.get("toolCallId") or chunk.get("id")
        if chunk["type"] in STARTS | WHOLE:
            begun.add(part or "")
        elif chunk["type"].startswith(("text-", "reasoning-", "tool-")) and part not in begun:
            found.append(chunk)
    return found


def test_a_restart_point_is_where_a_part_begins_and_none_is_open() -> None:
    places = Places()
    places.read(frames({"type": "start"}, {"type": "start-step"}))
    places.read(frames({"type": "text-start", "id": "a"}, {"type": "text-delta", "id": "a", "delta": "x"}))
    places.read(frames({"type": "text-end", "id": "a"}, {"type": "tool-input-start", "toolCallId": "c"}))
    places.read(frames({"type": "tool-input-delta", "toolCallId": "c"}, {"type": "text-start", "id": "b"}))
    places.read(frames({"type": "text-end", "id": "b"}, {"type": "tool-input-available", "toolCallId": "c"}))
    places.read(frames({"type": "tool-output-available", "toolCallId": "c"}, {"type": "start-step"}))
    places.read(frames({"type": "data-chart", "id": "d"}, {"type": "finish"}) + b"data: [DONE]\n\n")
    assert places.chunks == 14
    assert [places.before(index) for index in range(14)] == [0] * 5 + [5] * 7 + [12] * 2


@pytest.mark.parametrize("case", CASES)
def test_every_chunk_after_a_restart_point_has_its_start(case: str) -> None:
    events, _ = CASES[case]
    body = read(batches(events))
    sent = [frame.removeprefix(b"data: ") for frame in body.split(b"\n\n")]
    chunks = [json.loads(chunk) for chunk in sent if chunk.startswith(b"{")]
    places = Places()
    places.read(body)
    assert places.chunks == len(chunks)
    for index in range(len(chunks)):
        begun = places.before(index)
        assert begun <= index
        assert orphans(chunks[begun:]) == []
