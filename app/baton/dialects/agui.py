"""The dialect of AG-UI 1.0: a stream as the events of a run, which `HttpAgent` reads.

Frames are `data: <event as JSON>`. A run begins with `RUN_STARTED` and ends with `RUN_FINISHED` or `RUN_ERROR`. The
client takes a clean end for success, so a connection that ends earlier is cut.

A frame's number is its place in the stream, after the `RUN_STARTED`. While a stream waits for people, its connections
end with a `RUN_FINISHED` whose outcome is `interrupt`: it is not a frame of the stream, and has no number. The client's
answers are a new run, which continues behind the wait. A client that reads the stream later gets one run.

A restarted answer is a `MESSAGES_SNAPSHOT` with the messages that the client had before it: the client drops all
others. So is the beginning of a replay, since the client may have a part of the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

import orjson

from ..db.event_log import Batch
from . import sse
from .agui_events import AgUiState, Events, Run, snapshot, started
from .protocol import Encoded, Header, Over


class AgUi:
    """The dialect."""

    name = "agui"
    headers: ClassVar[Sequence[Header]] = sse.HEADERS
    comment: ClassVar[bytes] = sse.COMMENT
    reconnects: ClassVar[bool] = False

    def encode(self, batch: Batch, state: AgUiState, after: int) -> Encoded[AgUiState]:
        """Encode the frames of a batch that follow number `after`."""
        events = Events(state)
        for seq, event in enumerate(map(orjson.loads, batch.lines), batch.first_seq):
            events.add(event, seq)
            if events.over:
                break
        return events.encoded(after)

    def greeting(self, reconnect_milliseconds: int) -> bytes:
        """Return nothing: the first frame is sent at once."""
        return b""

    def broken(self, state: AgUiState, code: str, message: str) -> tuple[bytes, Over]:
        """Return an error."""
        events = Events(state)
        events.fail(code, message)
        return events.encoded(0).body, "ended"


def begin(run: Run, stream_id: str, shown: bytes | None = None, thoughts: Sequence[str] = ()) -> Encoded[AgUiState]:
    """Return the frames before a stream's first event.

    `shown` are the messages to begin a replay with, as a JSON list, and `thoughts` as for `snapshot`.
    """
    body = started(run, stream_id)
    if shown is not None:
        body += snapshot(shown, thoughts)
    return Encoded(body, 1, 0, AgUiState(run))


AG_UI: Final = AgUi()
