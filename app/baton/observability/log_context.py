"""Adds the request, the stream and the trace that a log record belongs to.

Each is in a context variable, which tasks inherit. So the records of a generator, and of a library that it calls, have
them too. A task that serves many streams passes the id with the record: `extra=fields_of(stream_id)`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Final
from uuid import UUID

from . import request_ids, traceparent

NOBODYS: Final = "-"
FIELDS: Final = ("request_id", "stream_id", "trace_id", "span_id")

_database: Final[ContextVar[str]] = ContextVar("baton_database", default="")
_stream_id: Final[ContextVar[UUID | None]] = ContextVar("baton_stream_id", default=None)


def enter_database(name: str) -> None:
    """Add a database's name to all further records of this task. The only one of an installation has none."""
    _database.set(name)


def enter_stream(stream_id: UUID) -> None:
    """Add a stream's id to all further records of this task. For tasks that end with their request."""
    _stream_id.set(stream_id)


@contextlib.contextmanager
def of_stream(stream_id: UUID) -> Iterator[None]:
    """Add a stream's id to the records logged inside the block."""
    token = _stream_id.set(stream_id)
    try:
        yield
    finally:
        _stream_id.reset(token)


def fields_of(stream_id: UUID) -> dict[str, str]:
    """Return the `extra` of one record about a stream, for a task that serves many streams."""
    return {"stream_id": str(stream_id)}


def stream_of(task: asyncio.Task[Any] | None) -> UUID | None:
    """Return the stream that a task works for. Before Python 3.12 this is not known. Any thread may call this."""
    context = getattr(task, "get_context", None)
    return None if context is None else context().get(_stream_id)


class ContextFilter(logging.Filter):
    """Sets the attributes `request_id`, `stream_id`, `trace_id` and `span_id` on log records, "-" where there is none.
    With several databases, records about one of them have the attribute `database`.

    Add it to a handler, so that it sees the records of all loggers. That handler must run in the thread that logs: the
    context of another thread is different.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Set the attributes, and accept the record."""
        known = record.__dict__
        if "request_id" not in known:
            known["request_id"] = request_ids.current() or NOBODYS
        if "stream_id" not in known:
            known["stream_id"] = str(_stream_id.get() or NOBODYS)
        if "database" not in known and (name := _database.get()):
            known["database"] = name
        if "trace_id" not in known:
            parent = traceparent.current()
            known["trace_id"] = NOBODYS if parent is None else parent.trace_id
            known["span_id"] = NOBODYS if parent is None else parent.span_id
            known["trace_sampled"] = parent is not None and parent.sampled
        return True
