"""Streams for the tests of dialects: events in batches, as the log gives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
from hypothesis import strategies as st

from baton.db.event_log import Append, Batch
from baton.db.streams import Stream
from baton.dialects.native import Native
from baton.dialects.protocol import Dialect, Encoded, Reader
from baton.events import encode_event, encode_text, join_lines
from baton.outcome import Outcome

Event = Mapping[str, Any]
STREAM_ID = UUID("019a5e2c-0000-7000-8000-00000000000a")
CREATED_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Counting(Native):
    """The native dialect, which counts how often it encodes."""

    def __init__(self) -> None:
        super().__init__("counting")
        self.encoded = 0

    def encode(self, batch: Batch, state: None, after: int) -> Encoded[None]:
        self.encoded += 1
        return super().encode(batch, state, after)


def stream(**given: Any) -> Stream:
    """A stream's row."""
    empty = dict.fromkeys(Stream.__dataclass_fields__)
    known = {"id": STREAM_ID, "tenant": "", "generator": "g", "metadata": {}, "status": "running", "epoch": 1}
    return Stream(**empty | known | {"attempts": 1, "run": 1, "created_at": CREATED_AT} | given)  # type: ignore[arg-type]


def encoded(event: str | Event | Outcome) -> bytes:
    """One event as the log has it."""
    if isinstance(event, Outcome):
        return event.encode()
    if isinstance(event, str):
        return encode_text(event)
    return orjson.dumps(event) if event["type"] in {"reset", "resumed", "waiting"} else encode_event(event)


def batches(events: Sequence[str | Event | Outcome], sizes: Iterable[int] = ()) -> list[Batch]:
    """Put events into batches of these sizes, and the rest into one more."""
    found, first = [], 1
    rest = list(events)
    for size in (*sizes, len(rest)):
        some, rest = rest[:size], rest[size:]
        if some:
            lines = join_lines([encoded(event) for event in some]).decode()
            found.append(Batch(first, first + len(some) - 1, isinstance(some[-1], Outcome), lines))
            first += len(some)
    return found


def batch_of(stream_id: UUID, size_bytes: int) -> Append:
    """A batch of one event whose encoding has just that many bytes."""
    event = encode_text("x" * (size_bytes - len(encode_text(""))))
    assert len(event) == size_bytes
    return Append(stream_id, 1, 1, 1, event)


def sent(dialect: Dialect[Any], opening: Encoded[Any], found: list[Batch], after: int = 0) -> bytes:
    """What a client that has the frames up to number `after` gets."""
    return opening.body + Reader(dialect, opening, after).read(found)


def frames(body: bytes) -> list[bytes]:
    """The blocks of an event stream."""
    *blocks, rest = body.split(b"\n\n")
    assert rest == b""
    return blocks


def data(body: bytes) -> list[Any]:
    """The data of each block, parsed."""
    found = [block.rpartition(b"data: ")[2] for block in frames(body)]
    return [orjson.loads(item) if item != b"[DONE]" else "[DONE]" for item in found]


WAITING: Event = {"type": "waiting", "for": {"type": "approval", "calls": ["c0"]}, "until": "2026-12-04T12:00:00Z"}
RESUMED: Event = {"type": "resumed", "run": 2, "reason": "worker_lost"}
TEXT = st.text(st.characters(exclude_categories=()), min_size=1, max_size=6)
EVENT = st.one_of(
    TEXT,
    TEXT.map(lambda delta: {"type": "reasoning", "delta": delta}),
    st.builds(
        lambda index, delta, named, run_by: (
            {"type": "tool_call", "index": index, "arguments_delta": delta}
            | ({"id": f"c{index}", "name": "f"} if named else {})
            | ({"run_by": run_by} if run_by else {})
        ),
        st.integers(0, 2),
        TEXT,
        st.booleans(),
        st.sampled_from([None, "client", "generator"]),
    ),
    st.builds(lambda index: {"type": "tool_approval", "id": f"c{index}"}, st.integers(0, 2)),
    st.builds(lambda index: {"type": "tool_result", "id": f"c{index}", "result": {"n": index}}, st.integers(0, 2)),
    st.just({"type": "usage", "input_tokens": 3, "output_tokens": 4, "total_tokens": 7}),
    st.just({"type": "custom", "name": "n", "data": 1}),
    st.just(RESUMED),
)
ENDS = st.sampled_from(
    [
        Outcome.completed("stop"),
        Outcome.completed("length"),
        Outcome.cancelled(),
        Outcome.failed("worker_lost", "It went away."),
    ]
)
ANSWERS = st.builds(lambda events, end: [*events, end], st.lists(EVENT, max_size=12), ENDS)
SIZES = st.lists(st.integers(1, 4), max_size=8)
