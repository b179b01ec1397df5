"""The id under which a page is asked to approve a call: it names the stream that asks, and the number of the question.

Older messages, which pages have saved, have ids that name the call instead of the question.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from uuid import UUID

_QUESTION: Final = re.compile(r"approval_([0-9a-f]{32})\.([1-9][0-9]{0,9})", re.ASCII)
_OF_CALL: Final = re.compile(r"approval_([0-9a-f]{32})_(.+)", re.DOTALL)


class Question(NamedTuple):
    """A question of a stream: the number of its event, or, in older ids, the call that it is about."""

    stream_id: UUID
    seq: int | None
    call_id: str | None


def approval_id(stream: str, seq: int) -> str:
    """Return the id for the event with this number of the stream with these 32 hex digits."""
    return f"approval_{stream}.{seq}"


def parse_approval_id(given: str) -> Question | None:
    """Return the question that an id names; None if the id is not an approval's."""
    if found := _QUESTION.fullmatch(given):
        return Question(UUID(found[1]), int(found[2]), None)
    if found := _OF_CALL.fullmatch(given):
        return Question(UUID(found[1]), None, found[2])
    return None
