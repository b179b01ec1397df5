"""Pauses between attempts: full jitter."""

from __future__ import annotations

import pytest

from baton.backoff import Backoff


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
def test_pauses_spread_over_a_bound_that_doubles_up_to_the_cap(failures: int, bound: float) -> None:
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
