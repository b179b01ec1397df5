"""The end of a stream: the content of its terminal event and of its row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson
from typing_extensions import TypedDict

from .events import FinalStatus, encode_object, without_surrogates
from .usage import AttemptUsage, Bill

WORKER_LOST_MESSAGE: Final = "This answer was interrupted and could not be finished."
WORKER_LEFT_MESSAGE: Final = "This answer was interrupted by maintenance and could not be finished. Try again."
_WORD = re.compile(r"[a-z0-9_.-]{1,64}")


class TimingsContent(TypedDict):
    """The duration and speed of a stream. `tokens` counts events of text, reasoning and tool calls."""

    duration_seconds: float
    time_to_first_token_seconds: float | None
    tokens: int
    tokens_per_second: float | None


@dataclass(frozen=True, slots=True)
class Timings:
    """The duration and speed of a stream, on its worker's clock. They start again when another worker takes over.

    `tokens` counts events of text, reasoning and tool calls. The provider's count is in the usage.
    """

    duration_seconds: float = 0.0
    time_to_first_token_seconds: float | None = None
    tokens: int = 0

    @property
    def tokens_per_second(self) -> float | None:
        """The rate after the first token, or None for fewer than two tokens."""
        first = self.time_to_first_token_seconds
        if first is None or self.tokens < 2 or self.duration_seconds <= first:
            return None
        return round((self.tokens - 1) / (self.duration_seconds - first), 3)

    def plus(self, tokens: int) -> Timings:
        """Return it with some more tokens, which came just now."""
        first = self.time_to_first_token_seconds
        return replace(
            self,
            time_to_first_token_seconds=self.duration_seconds if first is None and tokens else first,
            tokens=self.tokens + tokens,
        )

    def as_dict(self) -> TimingsContent:
        """Return it as the terminal event and the API show it."""
        return {
            "duration_seconds": round(self.duration_seconds, 6),
            "time_to_first_token_seconds": _rounded(self.time_to_first_token_seconds),
            "tokens": self.tokens,
            "tokens_per_second": self.tokens_per_second,
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a stream. `finish_reason` and `error_code` are short lower-case words.

    `usage` is the sum over all attempts. `usage_by_attempt` is set if several attempts reported any. `answered_by` is
    what a built-in provider recorded (`generators.answer_record`). It is in the row, and not in the terminal event.
    """

    status: FinalStatus
    finish_reason: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    usage: Mapping[str, int | float] | None = None
    timings: Timings = field(default_factory=Timings)
    usage_by_attempt: Sequence[AttemptUsage] | None = None
    answered_by: Mapping[str, Any] | None = None

    @classmethod
    def failed(cls, code: str, message: str, **rest: Any) -> Outcome:
        """Return a failure, with a code for programs and a sentence for people."""
        return cls("failed", finish_reason="error", error_code=_word(code), error_message=_text(message), **rest)

    @classmethod
    def completed(cls, finish_reason: str, **rest: Any) -> Outcome:
        """Return the end of a stream whose generator finished."""
        return cls("completed", finish_reason=_word(finish_reason), **rest)

    @classmethod
    def cancelled(cls, *, finish_reason: str = "cancelled", **rest: Any) -> Outcome:
        """Return the end of a stream that was cancelled, by a request or because it had no viewer."""
        return cls("cancelled", finish_reason=finish_reason, **rest)

    def billed(self, bill: Bill) -> Outcome:
        """Return the same end with the usage of the stream."""
        return replace(self, usage=bill.total, usage_by_attempt=bill.attempts)

    def encode(self) -> bytes:
        """Return the terminal event as one line of JSON."""
        event: dict[str, Any] = {
            "type": "done",
            "status": self.status,
            "finish_reason": self.finish_reason,
            "usage": self.usage,
            "timings": self.timings.as_dict(),
        }
        if self.usage_by_attempt is not None:
            event["usage_by_attempt"] = self.usage_by_attempt
        if self.error_code is not None:
            event["error"] = {"code": self.error_code, "message": self.error_message}
        return encode_object(event)

    @property
    def code(self) -> str:
        """The reason for the end in one word."""
        return self.error_code or self.finish_reason or ""

    @classmethod
    def decode(cls, line: bytes) -> Outcome:
        """Decode a terminal event."""
        event = orjson.loads(line)
        error = event.get("error") or {}
        timings = event["timings"]
        return cls(
            event["status"],
            event["finish_reason"],
            error.get("code"),
            error.get("message"),
            event["usage"],
            Timings(timings["duration_seconds"], timings["time_to_first_token_seconds"], timings["tokens"]),
            event.get("usage_by_attempt"),
        )


def _word(text: object) -> str:
    """Return a valid code for any value of a generator, so that `GenerationError(429, ...)` does not break the end."""
    return text if isinstance(text, str) and _WORD.fullmatch(text) else "other"


def _text(message: object) -> str:
    """Return a message that a text column can store."""
    return without_surrogates(str(message)).replace("\0", "\ufffd")[:2000]


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
