"""The text of chaos' streams: who says it, a running number and a checksum, so that any wrong mixture shows."""

from __future__ import annotations

import zlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """One delta: the `number`th that the generator's run of that name yielded."""

    run: str
    number: int


def write(piece: Piece, padding: int = 0) -> str:
    """Write a delta with so many characters of padding."""
    body = f"{piece.run} {piece.number} {'·' * padding}"
    return f"{body}{zlib.crc32(body.encode()):08x} "


def read(text: str) -> Piece | None:
    """Read a delta; None if it is not what was written."""
    body, checksum = text[:-9], text[-9:]
    if checksum != f"{zlib.crc32(body.encode()):08x} ":
        return None
    run, number, _ = body.split(" ", 2)
    return Piece(run, int(number))
