"""What happened at the providers before and while a stream is answered: who answered, and what had failed before.

A run makes a record current in its task. The built-in providers fill it in, and other generators do not know it. It is
used on the event loop; `waiting` and `active_at` may be read from any thread.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from ..events import without_surrogates

_LONGEST_TEXT: Final = 256


@dataclass(frozen=True, slots=True)
class FailedCall:
    """A call of a model that failed before its first event, and what was done next.

    `code` is Baton's, `status` that of the HTTP response, and `request_id` the provider's. `waited_seconds` is the
    pause after the call.
    """

    name: str
    model: str | None
    code: str
    status: int | None
    request_id: str | None
    then: str  # "retry", "fallback" or "fail"
    waited_seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return it as the stream's row has it, without what is not known."""
        known = {
            "name": self.name,
            "model": self.model,
            "error": self.code,
            "status": self.status,
            "request_id": self.request_id,
            "waited_seconds": round(self.waited_seconds, 3),
        }
        return {name: _stored(value) for name, value in known.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Answerer:
    """The model that answers: the name that Baton knows it by, and what the provider says about its answer."""

    name: str
    provider: str
    model: str | None = None
    response_id: str | None = None
    request_id: str | None = None


class AnswerRecord:
    """The record of one run."""

    def __init__(self) -> None:
        self.failed_calls: list[FailedCall] = []
        self.waiting = False  # for a provider's limit or for a free place: silence that is meant
        self.active_at = 0.0  # when a wait or a call last ended
        self._answerer: Answerer | None = None
        self._said: dict[str, str | None] = {}

    def enter(self) -> None:
        """Make this the record of the current task, and of the tasks that it starts."""
        _CURRENT.set(self)

    @contextlib.contextmanager
    def wait(self) -> Iterator[None]:
        """Note a wait that has a bound of its own."""
        self.waiting = True
        try:
            yield
        finally:
            self.waiting = False
            self.active_at = time.monotonic()

    def identify(self, **said: str | None) -> None:
        """Note what the provider says about the answer that has begun: fields of `Answerer`."""
        self._said |= {name: value for name, value in said.items() if value is not None}

    def answered(self, answerer: Answerer) -> None:
        """Note who answers. What the provider says overrides what was asked."""
        self._answerer = replace(answerer, **self._said)  # type: ignore[arg-type]

    def failed(self, call: FailedCall) -> None:
        """Note a call that failed before its first event."""
        self.failed_calls.append(call)
        self.active_at = time.monotonic()
        self._said = {}

    def as_dict(self) -> Mapping[str, Any] | None:
        """Return it as the stream's row has it; None if no provider was asked, or none has replied."""
        if self._answerer is None and not self.failed_calls:
            return None
        found = asdict(self._answerer) if self._answerer else dict.fromkeys(field.name for field in fields(Answerer))
        answerer = {name: _stored(value) for name, value in found.items()}
        return {**answerer, "attempts": [call.as_dict() for call in self.failed_calls]}


def _stored(value: Any) -> Any:
    """Return a value that a JSON column can store. Clients may name any model, and providers any id."""
    return without_surrogates(value[:_LONGEST_TEXT]).replace("\0", "\ufffd") if isinstance(value, str) else value


_CURRENT: Final[ContextVar[AnswerRecord | None]] = ContextVar("answer_record", default=None)


def current_record() -> AnswerRecord:
    """Return the record of the current task; outside of a run, one that nobody reads."""
    return _CURRENT.get() or AnswerRecord()
