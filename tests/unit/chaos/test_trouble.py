"""What faults excuse: a promotion only the streams that it may have lost."""

from __future__ import annotations

import pytest

from baton.chaos.trouble import KEPT_SECONDS, NEAR_SECONDS, Trouble


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def promoted(trouble: Trouble, clock: Clock) -> None:
    """Promote a standby, on which worker-1 and worker-2 run a stream each, from second 200 to 203."""
    clock.seconds = 200.0
    promotion = trouble.note_detached({"one": "worker-1", "two": "worker-2"})
    clock.seconds = 202.0
    promotion.stopped_at = clock.seconds
    clock.seconds = 203.0
    promotion.promoted_at = clock.seconds


def test_only_streams_of_undisturbed_workers_must_be_healed() -> None:
    clock = Clock()
    trouble = Trouble(clock)
    clock.seconds = 199.0
    trouble.note_worker("worker-2")
    promoted(trouble, clock)
    assert not trouble.may_have_rewound("one", 150)
    assert trouble.survived("one", 150)
    assert trouble.may_have_rewound("two", 150)
    # It was queued, or was created after that.
    assert trouble.may_have_rewound("queued", 150)
    assert trouble.may_have_rewound("new", 201)
    # It was created after the promotion.
    assert not trouble.may_have_rewound("newer", 202.5)
    assert not trouble.survived("newer", 202.5)


@pytest.mark.parametrize(
    ("at", "excuses"),
    [
        (199 - NEAR_SECONDS, False),
        (201 - NEAR_SECONDS, True),
        (202, True),
        (202 + NEAR_SECONDS, True),
        (204 + NEAR_SECONDS, False),
    ],
)
def test_trouble_of_a_worker_counts_near_the_promotion(at: float, excuses: bool) -> None:
    clock = Clock()
    trouble = Trouble(clock)
    if at < 200:
        clock.seconds = at
        trouble.note_worker("worker-1")
    promoted(trouble, clock)
    if at > 200:
        clock.seconds = at
        trouble.note_worker("worker-1")
    assert trouble.may_have_rewound("one", 150) is excuses


def test_what_was_committed_before_the_standby_was_detached_is_not_lost() -> None:
    clock = Clock()
    trouble = Trouble(clock)
    promoted(trouble, clock)
    assert [trouble.lost_at(at) for at in (190, 201, 203)] == [False, True, False]


def test_a_promotion_that_did_not_happen_excuses_nothing() -> None:
    clock = Clock()
    trouble = Trouble(clock)
    trouble.forget(trouble.note_detached({}))
    assert not trouble.may_have_rewound("one", 50)


def test_a_promotion_that_loses_more_than_workers_keep_excuses_all() -> None:
    clock = Clock()
    trouble = Trouble(clock)
    promotion = trouble.note_detached({"one": "worker-1"})
    clock.seconds += KEPT_SECONDS + 1
    promotion.stopped_at = promotion.promoted_at = clock.seconds
    assert trouble.may_have_rewound("one", 50)


def test_what_was_committed_before_or_after_the_lost_part_is_kept() -> None:
    clock = Clock()
    trouble = Trouble(clock)
    promoted(trouble, clock)
    assert not trouble.lost_between(150, 198)
    assert trouble.lost_between(150, 201)
    assert trouble.lost_between(201, 300)
    assert not trouble.lost_between(202.5, 300)
