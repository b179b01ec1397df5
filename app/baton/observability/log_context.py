"""What a record of the log belongs to: a request, a stream, a trace.

Each travels in a context variable, which tasks inherit: so it is in the lines, too, that a generator logs, or a library
that it calls. What is logged of a stream elsewhere, by a task that serves many, names it: `extra={"stream_id": …}`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Final
from uuid import UUID

from . import request_ids, traceparent

NOBODYS: Final = "-"
FIELDS: Final = ("request_id", "stream_id", "trace_id", "span_id")

_stream_id: Final[ContextVar[UUID | None]] = ContextVar("baton_stream_id", default=None)


def enter_stream(stream_id: UUID) -> None:
    """Have what this task logs from now on belong to a stream: for tasks that end with their request."""
    _stream_id.set(stream_id)


@contextlib.contextmanager
def of_stream(stream_id: UUID) -> Iterator[None]:
    """Have what is logged meanwhile belong to a stream."""
    token = _stream_id.set(stream_id)
    try:
        yield
    finally:
        _stream_id.reset(token)


class ContextFilter(logging.Filter):
    """Gives log records the attributes `request_id`, `stream_id`, `trace_id` and `span_id`, "-" where there is none.

    Put it on a handler, so that it sees what all loggers say. It must be one that formats where it is called: in
    another thread the context is another.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        known = record.__dict__
        if "request_id" not in known:
            known["request_id"] = request_ids.current() or NOBODYS
        if "stream_id" not in known:
            known["stream_id"] = str(_stream_id.get() or NOBODYS)
        if "trace_id" not in known:
            parent = traceparent.current()
            known["trace_id"] = NOBODYS if parent is None else parent.trace_id
            known["span_id"] = NOBODYS if parent is None else parent.span_id
            known["trace_sampled"] = parent is not None and parent.sampled
        return True
