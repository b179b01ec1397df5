"""The plain text of an answer, as it comes and with nothing around it: for curl, and for clients that parse it as JSON.

It can say nothing but text. So an answer that fails, is cancelled, or is begun again by another worker, ends with a cut
connection, and only a whole one with a clean end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

import orjson

from ..db.event_log import Batch
from .dialect import Encoded, Header, Over


class Text:
    """The dialect. Its state is whether there was any text, which a reset then takes back."""

    name = "text"
    headers: ClassVar[Sequence[Header]] = (
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"cache-control", b"no-store, no-transform"),
        (b"x-accel-buffering", b"no"),
    )
    comment: ClassVar[bytes] = b""
    reconnects: ClassVar[bool] = False

    def encode(self, batch: Batch, state: bool, after: int) -> Encoded[bool]:
        """Join the text of a batch, up to a reset. It is always the whole batch: nobody comes back to the middle."""
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
        """Nothing."""
        return b""

    def broken(self, state: bool, code: str, message: str) -> tuple[bytes, Over]:
        """There is no way to say so."""
        return b"", "cut"


TEXT: Final = Text()
START: Final[Encoded[bool]] = Encoded(b"", 1, 0, False)
