"""Logs the end of a stream: one line, from the worker or the pod that ended it."""

from __future__ import annotations

import logging
from typing import Any, Final
from uuid import UUID

from ..outcome import Outcome
from . import log_context, traceparent

logger = logging.getLogger(__name__)

_ROUNDED_TO: Final = 6


def note(stream_id: UUID, outcome: Outcome, trace: str | None = None, **known: Any) -> None:
    """Log a stream's end, after it is in the database, with the other fields that are known.

    `trace`: the stream's `traceparent`, if this is called outside of its trace. A failed stream is a warning. The
    error's message may quote the conversation, so it is only in the stream's row.
    """
    level = logging.WARNING if outcome.status == "failed" else logging.INFO
    if not logger.isEnabledFor(level):
        return
    fields = {
        "status": outcome.status,
        "code": outcome.error_code,
        "finish_reason": outcome.finish_reason,
        "usage": outcome.usage,
        "usage_by_attempt": outcome.usage_by_attempt,
        "answered_by": outcome.answered_by,
        **known,
    }
    with traceparent.within(traceparent.parse(trace) or traceparent.current()):
        logger.log(
            level,
            "Stream %s has ended: %s (%s).",
            stream_id,
            outcome.status,
            outcome.code,
            extra=log_context.fields_of(stream_id) | {name: _rounded(value) for name, value in fields.items()},
        )


def _rounded(value: object) -> object:
    return round(value, _ROUNDED_TO) if isinstance(value, float) else value
