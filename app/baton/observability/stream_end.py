"""The line that the log has of a stream's end, from whoever brought it about."""

from __future__ import annotations

import logging
from typing import Any, Final
from uuid import UUID

from ..outcome import Outcome
from . import traceparent

logger = logging.getLogger(__name__)

_ROUNDED_TO: Final = 6


def note(stream_id: UUID, outcome: Outcome, trace: str | None = None, **known: Any) -> None:
    """Log a stream's end, once it is in the database, with what else is known of the stream.

    `trace`: the stream's `traceparent`, where this is not called in its trace. What has failed is a warning. The
    error's message, in which a provider may have quoted the conversation, is in the stream's row alone.
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
        **known,
    }
    with traceparent.within(traceparent.parse(trace) or traceparent.current()):
        logger.log(
            level,
            "Stream %s has ended: %s (%s).",
            stream_id,
            outcome.status,
            outcome.code,
            extra={"stream_id": str(stream_id)} | {name: _told(value) for name, value in fields.items()},
        )


def _told(value: object) -> object:
    return round(value, _ROUNDED_TO) if isinstance(value, float) else value
