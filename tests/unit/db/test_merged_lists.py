"""Tests for the lists of several databases that become one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from baton.db import stream_lists
from baton.db.stream_lists import FIRST, Page
from baton.db.streams import Stream


def stream(number: int) -> Stream:
    fields: dict[str, Any] = dict.fromkeys(Stream.__dataclass_fields__)
    return Stream(**fields | {"id": UUID(int=number), "created_at": datetime.now(UTC), "metadata": {}})


def page_of(ids: list[int], last: UUID, limit: int, most: int) -> Page:
    """Return what `find` returns of a database with these streams, of which it scans at most so many."""
    below = sorted((number for number in ids if UUID(int=number) <= last), reverse=True)
    scanned = below[:most]
    # Every third stream does not match the filter, so a page may be short.
    fits = [number for number in scanned if number % 3]
    if len(fits) > limit:
        return Page([stream(number) for number in fits[:limit]], UUID(int=fits[limit - 1]), most, UUID(int=scanned[-1]))
    before = UUID(int=scanned[-1]) if len(below) > most else None
    return Page([stream(number) for number in fits], before, len(scanned), UUID(int=scanned[-1]) if scanned else None)


@given(
    st.lists(st.sets(st.integers(1, 200), max_size=40), min_size=1, max_size=4),
    st.integers(1, 7),
    st.integers(2, 9),
)
def test_all_pages_together_have_every_stream_once_in_order(databases: list[set[int]], limit: int, most: int) -> None:
    seen: set[int] = set()
    own = []
    for found in databases:
        own.append(sorted(found - seen))
        seen |= found
    listed: list[int] = []
    last = stream_lists.LAST
    for _ in range(500):
        page = stream_lists.merged([page_of(ids, last, limit, most) for ids in own], limit)
        assert len(page.streams) <= limit
        listed += [item.id.int for item in page.streams]
        if page.before is None:
            break
        assert page.before > FIRST
        last = stream_lists.below(page.before)
    assert listed == sorted((number for number in seen if number % 3), reverse=True)
