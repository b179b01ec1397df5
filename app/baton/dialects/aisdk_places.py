"""Where in the chunks of the AI SDK's dialect a client that has none of them can begin.

A client needs the chunk that opens a part: it throws on a delta of an unknown part, or drops it. So it begins where no
part is open, with a chunk that opens a part or is a whole part.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any, Final

import orjson

_HEAD: Final = b"data: "
# Most chunks are deltas, which open and close nothing.
_DELTAS: Final = tuple(
    b'data: {"type":"%b"' % kind for kind in (b"text-delta", b"reasoning-delta", b"tool-input-delta")
)
_OPENING: Final = frozenset({"text-start", "reasoning-start", "tool-input-start"})
_CLOSING: Final = frozenset(
    {
        "text-end",
        "reasoning-end",
        "tool-input-error",
        "tool-output-available",
        "tool-output-error",
        "tool-output-denied",
    }
)


class Places:
    """The indexes of these places, in the chunks read so far."""

    def __init__(self) -> None:
        self.chunks = 0
        self._open: set[str | None] = set()
        self._places: list[int] = []

    def read(self, frames: bytes) -> None:
        """Read the next frames."""
        for frame in frames.split(b"\n\n"):
            if frame.startswith(_DELTAS):
                self.chunks += 1
            elif frame.startswith(_HEAD + b"{"):
                self._add(orjson.loads(frame.removeprefix(_HEAD)))

    def before(self, index: int) -> int:
        """Return the last place at or before `index`; 0 if no part precedes it."""
        number = bisect_right(self._places, index)
        return self._places[number - 1] if number > 1 else 0

    def _add(self, chunk: Mapping[str, Any]) -> None:
        kind = chunk["type"]
        if not self._open and (kind in _OPENING or kind == "source-url" or kind.startswith("data-")):
            self._places.append(self.chunks)
        part = chunk.get("toolCallId") or chunk.get("id")
        if kind in _OPENING:
            self._open.add(part)
        elif kind in _CLOSING:
            self._open.discard(part)
        self.chunks += 1
