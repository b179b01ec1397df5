"""The id under which a page is asked to approve a call: it names the stream that asks, and the call."""

from __future__ import annotations

import re
from typing import Final
from uuid import UUID

_APPROVAL: Final = re.compile(r"approval_([0-9a-f]{32})_(.+)", re.DOTALL)


def approval_id(stream: str, call_id: str) -> str:
    """Return the id for a call of the stream with these 32 hex digits."""
    return f"approval_{stream}_{call_id}"


def parse_approval_id(given: str) -> tuple[UUID, str] | None:
    """Return the stream that asked and the id of the call in it; None if the id is not an approval's."""
    found = _APPROVAL.fullmatch(given)
    return None if found is None else (UUID(found[1]), found[2])
