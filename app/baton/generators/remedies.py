"""What helps against a call that failed before its first event: the same model again, the next one, or neither.

- What passes by itself is retried, and then the next model is asked: 408, 409, 429 and 5xx, no connection, a timeout,
  an answer that broke off, and such an error as the first event of an answer.
- What the operator has to repair leads to the next model at once: 401, 402, 403 and 404, and a quota that is used up.
- What the client has to change leads nowhere: all other 4xx, such as an invalid or too long request, and a refusal by a
  content filter. Another model would answer what the chosen one refuses.

A provider that says whether to retry, in `x-should-retry`, is right. `docs/generators.md` has the table.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from ..errors import GenerationError
from .sdk_errors import ReportedError, error_object, header, status_of

_TRANSIENT: Final = frozenset({408, 409, 429})
_MISCONFIGURED: Final = frozenset({401, 402, 403, 404})
_SPENT: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
_PASSING_CODES: Final = frozenset({"provider_timeout", "provider_unreachable", "provider_cut_off", "provider_error"})
# Words in the codes of errors that come as an answer's first event: the client's, and the operator's.
_CLIENTS: Final = ("invalid", "policy", "content", "context", "too_large", "too_long", "supported")
_OPERATORS: Final = ("authentication", "permission", "billing", "quota", "not_found")


class Remedy(Enum):
    """What helps against a failure."""

    RETRY = "retry"  # and then another model
    FALLBACK = "fallback"
    NONE = "none"


def remedy_of(failure: GenerationError) -> Remedy:
    """Return what helps against a failure. Its cause, if any, is the SDK's exception."""
    cause = failure.__cause__
    status = None if cause is None else status_of(cause)
    if isinstance(failure, ReportedError):
        return _of_reported(failure.reported or "")
    if cause is None or status is None:
        return Remedy.RETRY if failure.code in _PASSING_CODES else Remedy.NONE
    hint = header(cause, "x-should-retry")
    if hint == "true":
        return Remedy.RETRY
    found = _of_status(status, error_object(cause).get("code"))
    return Remedy.FALLBACK if hint == "false" and found is Remedy.RETRY else found


def _of_status(status: int, code: object) -> Remedy:
    if status in _MISCONFIGURED or (status == 429 and code in _SPENT):
        return Remedy.FALLBACK
    return Remedy.RETRY if status in _TRANSIENT or status >= 500 or status < 400 else Remedy.NONE


def _of_reported(code: str) -> Remedy:
    if any(word in code for word in _OPERATORS):
        return Remedy.FALLBACK
    return Remedy.NONE if any(word in code for word in _CLIENTS) else Remedy.RETRY
