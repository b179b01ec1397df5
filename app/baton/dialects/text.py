"""The plain text of an answer, as it comes: for curl, and for clients that parse it as JSON.

It has only text. So a connection ends cleanly only after a whole answer. If the answer fails, is cancelled, or is
restarted by another worker, the connection is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

import orjson

from ..db.event_log import Batch
from .protocol import Encoded, Header, Over


class Text:
    """The dialect. Its state is whether there was any text, which a reset discards."""

    name = "text"
    headers: ClassVar[Sequence[Header]] = (
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"cache-control", b"no-store, no-transform"),
        (b"x-accel-buffering", b"no"),
    )
    comment: ClassVar[bytes] = b""
    reconnects: ClassVar[bool] = False

    def encode(self, batch: Batch, state: bool, after: int) -> Encoded[bool]:
        """Join the text of a batch, up to a reset. It is always the whole batch: clients cannot resume."""
        parts: list[str] = []
        over: Over | None = None
        for line in batch.lines:
            if line.startswith('{"type":"text"'):
                parts.append(orjson.loads(line)["delta"])
            elif line.startswith('{"type":"reset"') and (state or parts):
                over = "cut"
                break
        if batch.terminal and over is None:
            over = "ended" if orjson.loads(batch.lines[-1])["status"] == "completed" else "cut"
        return Encoded("".join(parts).encode(), batch.first_seq, batch.last_seq, state or bool(parts), over)

    def greeting(self, reconnect_milliseconds: int) -> bytes:
        """Return nothing."""
        return b""

    def broken(self, state: bool, code: str, message: str) -> tuple[bytes, Over]:
        """Cut the connection: the format has no errors."""
        return b"", "cut"


TEXT: Final = Text()
START: Final[Encoded[bool]] = Encoded(b"", 1, 0, False)
