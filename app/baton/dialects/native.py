"""The native dialect: one SSE block for each event, `id: <seq>` and `data: <the event as JSON>`.

There is no `event:` line, so that `EventSource.onmessage` gets every event. The id is the cursor to resume with.

A view leaves out some types of events. The ids of the others stay, so a client can change the view when it resumes.
The answer view also leaves out the usage and the timings in the last event.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

import orjson

from ..db.event_log import Batch
from ..events import encode_object, join_lines
from ..snapshot import Snapshot
from . import sse
from .protocol import Encoded, Header, Over

# The fields of the last event in the answer view.
_END: Final = ("type", "status", "finish_reason", "error")
# Without an id, so that it moves no cursor.
_BROKEN: Final = b'data: {"type":"error","error":%b}\n\n'


class Native:
    """The dialect. It has no state."""

    headers: ClassVar[Sequence[Header]] = sse.HEADERS
    comment: ClassVar[bytes] = b":\n\n"
    reconnects: ClassVar[bool] = True

    def __init__(self, view: str, types: Sequence[str] = ()) -> None:
        self.name = f"native.{view}"
        # Every event of the log begins with its type.
        self._beginnings = tuple(f'{{"type":"{kind}"' for kind in types)

    def encode(self, batch: Batch, state: None, after: int) -> Encoded[None]:
        """Encode the events that follow number `after`."""
        lines, first = batch.lines, batch.first_seq
        if first <= after:
            lines = lines[after + 1 - first :]
            first = after + 1
        shown = self._beginnings
        if shown and batch.terminal and lines:
            lines = [*lines[:-1], _bare_end(lines[-1])]
        body = "".join(
            [f"id: {seq}\ndata: {line}\n\n" for seq, line in enumerate(lines, first)]
            if not shown
            else [f"id: {seq}\ndata: {line}\n\n" for seq, line in enumerate(lines, first) if line.startswith(shown)]
        )
        return Encoded(body.encode(), batch.first_seq, batch.last_seq, None)

    def greeting(self, reconnect_milliseconds: int) -> bytes:
        """Return a comment, and when to reconnect."""
        return sse.retry_block(reconnect_milliseconds)

    def broken(self, state: None, code: str, message: str) -> tuple[bytes, Over]:
        """Return an event without a number. A client that resumes gets an error."""
        return _BROKEN % orjson.dumps({"code": code, "message": message}), "ended"


def begin(after: int = 0) -> Encoded[None]:
    """Return the place behind event number `after`. No frames precede the first event."""
    return Encoded(b"", 1, after, None)


def snapshot_frame(snapshot: Snapshot, view: str) -> bytes:
    """Encode the answer so far as one event, with the number of the last event in it."""
    content = {name: value for name, value in snapshot.as_dict().items() if name != "last_event_id"}
    if view == "answer":
        content = {"text": snapshot.text}
    line = join_lines([encode_object({"type": "snapshot", **content})])
    return b"id: %d\ndata: %b\n\n" % (snapshot.last_event_id, line)


def _bare_end(line: str) -> str:
    event = orjson.loads(line)
    return join_lines([encode_object({name: event[name] for name in _END if name in event})]).decode()


FULL: Final = Native("full")
ANSWER: Final = Native("answer", ("text", "reset", "done"))
VIEWS: Final = {"full": FULL, "answer": ANSWER}
START: Final = begin()
