"""Parameters and headers that routes of several modules declare."""

from __future__ import annotations

from typing import Final

from .routing import AnswerHeader, Parameter

IDEMPOTENCY_KEY: Final = Parameter(
    "Idempotency-Key",
    "header",
    "The client's own name for this request. Repeating the request with it creates nothing new.",
    {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
)

REQUEST_ID: Final = AnswerHeader("x-request-id", "The id of the request, which the pod's log has too.")
POD: Final = AnswerHeader("x-baton-pod", "The pod that answers.")
RETRY_AFTER: Final = AnswerHeader("retry-after", "After how many seconds to try again.", {"type": "integer"})
