"""What the dialects of OpenAI's two APIs share: token counts and errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from typing_extensions import TypedDict

from ..codes import EndCode, RefusalCode

_MOST = 2**53 - 1

RESET = "This answer was interrupted and restarts"


class ErrorContent(TypedDict):
    """An error as OpenAI's clients read it. Its `code` is one of Baton's."""

    message: str
    type: str
    param: None
    code: RefusalCode | EndCode | str


@dataclass(frozen=True, slots=True)
class Tokens:
    """The token counts of a stream; 0 if unknown."""

    given: int
    made: int
    total: int
    cached: int
    cache_written: int
    reasoning: int

    @classmethod
    def of(cls, usage: Mapping[str, Any] | None) -> Self | None:
        """Read the usage that a generator reported, which may hold anything."""
        if not usage:
            return None
        known = {name: _count(value) for name, value in usage.items() if isinstance(value, int | float)}
        given, made = known.get("input_tokens", 0), known.get("output_tokens", 0)
        return cls(
            given,
            made,
            known.get("total_tokens", _count(given + made)),
            known.get("cached_tokens", 0),
            known.get("cache_write_tokens", 0),
            known.get("reasoning_tokens", 0),
        )


def _count(value: float) -> int:
    """Return a count that JavaScript can hold, whatever a generator reported."""
    return int(min(max(value, 0), _MOST))


def error_of(code: str, message: str, kind: str = "server_error") -> ErrorContent:
    """Return an error as OpenAI's clients read it."""
    return {"message": message, "type": kind, "param": None, "code": code}
