"""Pauses between attempts: full jitter."""

from __future__ import annotations

import asyncio

import pytest

from baton.backoff import Backoff, retry


def pauses(failures: int, **given: float) -> list[float]:
    """Return the sorted pauses of a thousand clients after a number of failures."""
    found = []
    for _ in range(1000):
        backoff = Backoff(**given)
        for _ in range(failures - 1):
            backoff.next_seconds()
        found.append(backoff.next_seconds())
    return sorted(found)


@pytest.mark.parametrize(("failures", "bound"), [(1, 0.1), (2, 0.2), (4, 0.8), (7, 5.0), (100, 5.0)])
def test_pauses_are_spread_up_to_a_bound_that_doubles_to_a_cap(failures: int, bound: float) -> None:
    found = pauses(failures)
    assert 0 <= found[0] < bound / 10
    assert bound * 0.9 < found[-1] <= bound
    assert bound * 0.4 < found[500] < bound * 0.6


def test_pauses_have_a_minimum() -> None:
    found = pauses(1, first_seconds=1, least_seconds=0.5)
    assert 0.5 <= found[0] < 0.6
    assert 0.9 < found[-1] <= 1


def test_a_success_resets_the_pauses() -> None:
    backoff = Backoff()
    for _ in range(10):
        backoff.next_seconds()
    backoff.reset()
    assert backoff.next_seconds() <= 0.1


async def test_work_is_retried_until_it_returns_and_other_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[Backoff] = []

    async def sleep(backoff: Backoff) -> None:
        pauses.append(backoff)

    monkeypatch.setattr(Backoff, "sleep", sleep)
    outcomes: list[Exception | str] = [OSError("1"), TimeoutError("2"), "done"]
    failures: list[Exception] = []

    async def work(_backoff: Backoff) -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert await retry(work, errors=(OSError,), on_failure=failures.append) == "done"
    assert [str(error) for error in failures] == ["1", "2"]
    assert len(pauses) == 2
    assert pauses[0] is pauses[1]
    outcomes.append(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await retry(work, errors=(OSError,), on_failure=failures.append)


@pytest.mark.parametrize("ends", [OSError("lost"), None])
async def test_a_cancel_that_work_has_swallowed_still_ends_the_retries(ends: Exception | None) -> None:
    begun, calls = asyncio.Event(), 0

    async def work(_backoff: Backoff) -> None:
        nonlocal calls
        calls += 1
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if ends is not None:
                raise ends from None
        raise OSError("swallowed")

    task = asyncio.create_task(retry(work, errors=(OSError,)))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert calls == 1
