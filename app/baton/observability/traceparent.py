"""The header `traceparent` of W3C's Trace Context, and to which trace belongs what is being done.

It travels in a context variable, which tasks inherit. Baton reads it, keeps it with the stream, and hands it on,
with or without OpenTelemetry (see `tracing`).
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

# A version to come may have more behind a further dash.
_FORM: Final = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class TraceParent:
    """A span: its trace's id and its own in lower-case hexadecimal digits, and the flags, two of them."""

    trace_id: str
    span_id: str
    flags: str = "01"

    @property
    def sampled(self) -> bool:
        """Whether whoever began the trace is recording it."""
        return bool(int(self.flags, 16) & 1)

    def __str__(self) -> str:
        """The header's value, of `MAX_CHARACTERS`."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


_current: Final[ContextVar[TraceParent | None]] = ContextVar("baton_traceparent", default=None)


def parse(value: str | None) -> TraceParent | None:
    """Read a header's value; None if it is none, or not a valid one, which counts as none."""
    found = _FORM.fullmatch(value) if value else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "00":
        return None if more else TraceParent(trace_id, span_id, flags)
    # Of what a version to come means by the flags, only the first is known.
    return TraceParent(trace_id, span_id, f"{int(flags, 16) & 1:02x}")


def given(values: Sequence[str]) -> TraceParent | None:
    """Read what a request has of these headers: two of them are none."""
    return parse(values[0]) if len(values) == 1 else None


def current() -> TraceParent | None:
    """Return the span that what is being done belongs to, if there is one."""
    return _current.get()


@contextlib.contextmanager
def within(parent: TraceParent | None) -> Iterator[None]:
    """Have what is done meanwhile belong to a span, or to none."""
    token = enter(parent)
    try:
        yield
    finally:
        leave(token)


def enter(parent: TraceParent | None) -> Token[TraceParent | None]:
    """Have what this task does belong to a span, or to none, until it calls `leave` with what this returns."""
    return _current.set(parent)


def leave(token: Token[TraceParent | None]) -> None:
    """Have what follows belong to what it did before."""
    _current.reset(token)
