"""The header `traceparent` of W3C's Trace Context, and the current span.

The current span is in a context variable, which tasks inherit. Baton reads the header, stores it with the stream and
passes it on, with or without OpenTelemetry (see `tracing`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Final

HEADER: Final = "traceparent"
MAX_CHARACTERS: Final = 55

# A later version may have more after another dash.
_FORM: Final = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class TraceParent:
    """A span: the trace's id, its own id, and the flags, all in lower-case hexadecimal digits."""

    trace_id: str
    span_id: str
    flags: str = "01"

    @property
    def sampled(self) -> bool:
        """Whether the service that started the trace records it."""
        return bool(int(self.flags, 16) & 1)

    def __str__(self) -> str:
        """Return the header's value, of `MAX_CHARACTERS`."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


_current: Final[ContextVar[TraceParent | None]] = ContextVar("baton_traceparent", default=None)


def parse(value: str | None) -> TraceParent | None:
    """Parse a header's value; None if there is none or it is not valid."""
    found = _FORM.fullmatch(value) if value else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "00":
        return None if more else TraceParent(trace_id, span_id, flags)
    # Only the first flag of a later version is known.
    return TraceParent(trace_id, span_id, f"{int(flags, 16) & 1:02x}")


def given(values: Sequence[str]) -> TraceParent | None:
    """Parse a request's headers of this name; more than one counts as none."""
    return parse(values[0]) if len(values) == 1 else None


def current() -> TraceParent | None:
    """Return the current span, if there is one."""
    return _current.get()


@contextlib.contextmanager
def within(parent: TraceParent | None) -> Iterator[None]:
    """Make a span the current one inside the block. None means no span."""
    token = enter(parent)
    try:
        yield
    finally:
        leave(token)


def enter(parent: TraceParent | None) -> Token[TraceParent | None]:
    """Make a span, or None for no span, the current one of this task until it calls `leave` with the token."""
    return _current.set(parent)


def leave(token: Token[TraceParent | None]) -> None:
    """Restore the span that was current before `enter`."""
    _current.reset(token)
