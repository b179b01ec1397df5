"""Tests for the choice of a database."""

from __future__ import annotations

import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from baton.db.placements import Placement
from baton.pod import placement
from baton.pod.placement import Placements

NAMES = [f"key\n\n{number}" for number in range(4000)]


def listed(weights: dict[int, float], *, age: timedelta) -> Placement:
    return Placement(uuid.uuid4(), weights, datetime.now(UTC) - age)


def test_names_are_spread_by_weight() -> None:
    shares = Counter(placement.home(name, {0: 1, 3: 2, 7: 1}) for name in NAMES)
    assert shares.keys() == {0, 3, 7}
    assert abs(shares[3] / len(NAMES) - 0.5) < 0.05
    assert abs(shares[0] / len(NAMES) - 0.25) < 0.05


def test_a_new_database_takes_names_and_moves_no_others() -> None:
    before = {name: placement.home(name, {0: 1, 1: 1}) for name in NAMES}
    after = {name: placement.home(name, {0: 1, 1: 1, 2: 1}) for name in NAMES}
    moved = [name for name in NAMES if after[name] != before[name]]
    assert {after[name] for name in moved} == {2}
    assert abs(len(moved) / len(NAMES) - 1 / 3) < 0.05


def test_a_drained_database_gives_its_names_away_and_moves_no_others() -> None:
    before = {name: placement.home(name, {0: 1, 1: 1, 2: 1}) for name in NAMES}
    after = {name: placement.home(name, {0: 1, 1: 0, 2: 1}) for name in NAMES}
    assert all(after[name] == before[name] for name in NAMES if before[name] != 1)
    assert set(after.values()) == {0, 2}


def test_a_home_does_not_depend_on_the_release() -> None:
    # Pods of two releases must agree.
    assert [placement.home(name, {0: 1, 1: 1, 2: 1, 3: 1}) for name in NAMES[:12]] == FIRST_HOMES


FIRST_HOMES = [1, 1, 2, 1, 2, 0, 2, 2, 3, 3, 2, 2]


@pytest.mark.parametrize(("chat", "name"), [("a", "a"), (5, "5"), (5.0, "5"), (1.5, "1.5"), (None, None), (True, None)])
def test_a_number_names_the_same_chat_as_its_digits(chat: object, name: str | None) -> None:
    assert placement.chat_of({"chat": chat}) == name


def test_without_lists_the_weights_of_the_settings_are_in_force() -> None:
    known = Placements({0: 1, 1: 0})
    assert known.weights() == {0: 1, 1: 0}
    assert known.homes("name", timedelta(days=1)) == [0]


def test_a_list_is_in_force_from_its_moment_on() -> None:
    known = Placements({0: 1})
    known.learn([listed({0: 1}, age=timedelta(hours=1)), listed({1: 1}, age=timedelta(seconds=-20))])
    assert known.homes("name", timedelta(days=1)) == [0]
    known.learn([listed({0: 1}, age=timedelta(hours=1)), listed({1: 1}, age=timedelta(seconds=1))])
    assert known.homes("name", timedelta(days=1)) == [1, 0]


def test_a_home_before_counts_as_long_as_something_may_be_there() -> None:
    known = Placements({0: 1})
    known.learn(
        [
            listed({0: 1}, age=timedelta(days=9)),
            listed({1: 1}, age=timedelta(days=5)),
            listed({2: 1}, age=timedelta(hours=1)),
        ]
    )
    # The list of database 0 was in force until five days ago, and that of database 1 until an hour ago.
    assert known.homes("name", timedelta(days=1)) == [2, 1]
    assert known.homes("name", timedelta(days=6)) == [2, 1, 0]
    assert known.numbers == {0, 1, 2}


def test_streams_without_a_name_are_spread_by_weight() -> None:
    weights = {0: 1.0, 1: 3.0, 2: 0.0, 3: 5.0}
    firsts = Counter(placement.by_weight(weights, [0, 1, 2])[0] for _ in range(4000))
    assert firsts.keys() == {0, 1}
    assert abs(firsts[1] / 4000 - 0.75) < 0.05
