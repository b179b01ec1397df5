"""The text of chaos' streams: each delta has its answer's token, its number and a checksum, so that any mix-up shows.

The text may be cut anywhere: a reader puts it together again.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Delta:
    """The `number`th delta of one answer. Answers of different generator runs may have the same token."""

    token: str
    number: int


class DeltaReader:
    """Reads deltas from their text, however it is cut. `rest` is the beginning of the next one."""

    __slots__ = ("rest",)

    def __init__(self) -> None:
        self.rest = ""

    def feed(self, text: str) -> list[Delta | None]:
        """Return the deltas that end in this text; None for each that is not as it was written."""
        *words, rest = (self.rest + text).split(" ")
        whole = len(words) - len(words) % 3
        self.rest = " ".join([*words[whole:], rest])
        return [read(" ".join([*words[start : start + 3], ""])) for start in range(0, whole, 3)]


def write(delta: Delta, padding: int = 0) -> str:
    """Encode a delta as text of three words, with this many characters of padding."""
    body = f"{delta.token} {delta.number} {'·' * padding}"
    return f"{body}{zlib.crc32(body.encode()):08x} "


def read(text: str) -> Delta | None:
    """Decode a delta; None if the text is not as it was written."""
    body, checksum = text[:-9], text[-9:]
    if checksum != f"{zlib.crc32(body.encode()):08x} ":
        return None
    token, number, _ = body.split(" ", 2)
    return Delta(token, int(number))
