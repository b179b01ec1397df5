"""Concurrent requests for the same answer share one query."""

from __future__ import annotations

import asyncio

import pytest

from baton.db.shared_work import RecentAnswers


class Finding:
    """Finds an answer when the test allows it, and counts how often."""

    def __init__(self) -> None:
        self.found = 0
        self.asked = asyncio.Event()
        self.allowed = asyncio.Event()

    async def __call__(self) -> int:
        self.found += 1
        self.asked.set()
        await self.allowed.wait()
        return self.found


async def test_all_requests_within_the_time_get_one_answer() -> None:
    finding, answers = Finding(), RecentAnswers(60)
    finding.allowed.set()
    assert await asyncio.gather(*(answers.get("key", finding) for _ in range(20))) == [1] * 20
    assert await answers.get("key", finding) == 1
    assert await answers.get("another", finding) == 2


async def test_an_expired_answer_is_computed_again() -> None:
    finding, answers = Finding(), RecentAnswers(0)
    finding.allowed.set()
    assert [await answers.get("key", finding) for _ in range(3)] == [1, 2, 3]


async def test_cancelling_the_first_request_keeps_the_answer_for_the_others() -> None:
    finding, answers = Finding(), RecentAnswers(0)
    first, second = (asyncio.create_task(answers.get("key", finding)) for _ in range(2))
    await finding.asked.wait()
    first.cancel()
    finding.allowed.set()
    assert await second == 1


async def test_an_error_is_raised_and_not_cached() -> None:
    answers = RecentAnswers(60)

    async def fail() -> int:
        raise LookupError

    async def succeed() -> int:
        return 1

    with pytest.raises(LookupError):
        await answers.get("key", fail)
    assert await answers.get("key", succeed) == 1
