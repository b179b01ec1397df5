"""What a pod says when it refuses a request: its problem+json (RFC 9457), and whether to ask again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Self

import httpx2
import orjson

_TEMPORARY: Final = frozenset({408, 425, 429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Problem:
    """A refusal. A proxy's page has no code; its detail is the name of the status."""

    code: str | None
    detail: str

    @classmethod
    def of(cls, response: httpx2.Response) -> Self:
        """Return what a response says. Its body must have been read."""
        try:
            content: Any = orjson.loads(response.content)
            return cls(content.get("code"), str(content["detail"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls(None, response.reason_phrase)


def is_temporary(response: httpx2.Response) -> bool:
    """Whether the pod or a proxy says that the same request may succeed in a moment, here or at another pod."""
    return response.status_code in _TEMPORARY


def retry_after_seconds(response: httpx2.Response) -> float:
    """Return how long a pod asks to wait: the number in `Retry-After`, or 0 if there is none."""
    value = response.headers.get("retry-after", "")
    return float(value[:6]) if value.isascii() and value.isdecimal() else 0.0
