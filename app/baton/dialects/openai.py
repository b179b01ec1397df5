"""What the dialects of OpenAI's two APIs share: counts of tokens, and the form of errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from typing_extensions import TypedDict

from ..codes import EndCode, RefusalCode

_MOST = 2**53 - 1

RESET = "This answer was interrupted, and begins again"


class ErrorContent(TypedDict):
    """An error as OpenAI's clients read it. Its `code` is one of Baton's."""

    message: str
    type: str
    param: None
    code: RefusalCode | EndCode | str


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a stream's usage counts; 0 for what it does not."""

    given: int
    made: int
    total: int
    cached: int
    cache_written: int
    reasoning: int

    @classmethod
    def of(cls, usage: Mapping[str, Any] | None) -> Self | None:
        """Read a usage, or what else a generator gave for one."""
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
    """A count that JSON can hold, whatever a generator counted."""
    return int(min(max(value, 0), _MOST))


def error_of(code: str, message: str, kind: str = "server_error") -> ErrorContent:
    """An error as OpenAI's clients read it."""
    return {"message": message, "type": kind, "param": None, "code": code}
