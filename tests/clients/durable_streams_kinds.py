"""The kinds of streams, and messages for each."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

WORDS = ("pod ", "ünï ", "\u2028", '"quoted" ', "x" * 300, "\U0001f389", "back\\slash ")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of stream. `message` makes one for a number, which no other number has."""

    name: str
    content_type: str
    message: Callable[[int], Any]

    @property
    def is_json(self) -> bool:
        return self.content_type.startswith("application/json")

    def messages(self, count: int) -> list[Any]:
        """JSON values, or bytes."""
        return [self.message(number) for number in range(count)]

    def encoded(self, message: Any) -> bytes:
        return orjson.dumps(message) if self.is_json else message

    def joined(self, taken: Sequence[Any]) -> Any:
        """What was read. Of events that is without the terminal one; of bytes and text, chunks do not matter."""
        if self.name == "events" and taken and taken[-1]["type"] == "done":
            return list(taken[:-1])
        if self.is_json:
            return list(taken)
        return b"".join(chunk.encode() if isinstance(chunk, str) else chunk for chunk in taken)


def _event(number: int) -> Any:
    return {"type": "text", "delta": f"{number} {WORDS[number % len(WORDS)]}"}


def _value(number: int) -> Any:
    return (number, [number, [], None], {"n": number, "w": WORDS[number % len(WORDS)], "\u0000": -1.5e-7})[number % 3]


def _line(number: int) -> bytes:
    return f"{number} {WORDS[number % len(WORDS)]}\n\n".encode()


def _bytes(number: int) -> bytes:
    return number.to_bytes(4, "big") + random.Random(number).randbytes(number % 50)


KINDS = (
    Kind("events", 'application/json; profile="urn:baton:events"', _event),
    Kind("json", "application/json", _value),
    Kind("text", "text/plain; charset=utf-8", _line),
    Kind("bytes", "application/octet-stream", _bytes),
)
