"""What the doctor concludes from several databases, where a test's servers have one clock."""

from __future__ import annotations

import datetime
from dataclasses import replace
from uuid import UUID

import pytest

from baton.db.database_identity import DatabaseIdentity
from baton.db.placements import Placement
from baton.doctor import several_checks
from baton.doctor.database_facts import DatabaseFacts
from baton.doctor.finding import Finding, Thresholds
from baton.settings import Settings

NEVER = UUID(int=0)
SHARED = Placement(UUID(int=1), {0: 1, 1: 1}, datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))
SETTINGS = Settings.load(
    databases={"a": {"url": "postgresql://u@h/a", "number": 0}, "b": {"url": "postgresql://u@h/b", "number": 1}}
)
FACTS = [
    DatabaseFacts(entry, DatabaseIdentity(NEVER, entry.number), [SHARED], None, 0.0, 0.0, 0, None, 0, 0)
    for entry in SETTINGS.all_databases
]


def found(*facts: DatabaseFacts) -> dict[str, Finding]:
    return {item.code: item for item in several_checks.findings(SETTINGS, facts, {}, Thresholds())}


@pytest.mark.parametrize(("ahead", "uncertain", "level"), [(0.9, 0, "ok"), (3, 1, "warning"), (3, 2.5, "ok")])
def test_clocks_may_differ_by_a_second(ahead: float, uncertain: float, level: str) -> None:
    one, other = FACTS
    ahead_one = replace(one, clock_ahead_seconds=ahead, clock_uncertain_seconds=uncertain)
    assert found(ahead_one, other)["database_clocks"].level == level


def test_lists_of_weights_that_one_database_lacks_are_reported() -> None:
    one, other = FACTS
    assert "weights" in found(one, other)
    assert "missing in b" in found(one, replace(other, placements=[]))["weights_incomplete"].message
    assert found(replace(one, placements=[]), replace(other, placements=[]))["weights_missing"].level == "error"


def test_keys_that_the_role_may_not_read_are_not_compared() -> None:
    assert not {"keys", "access", "keys_differ"} & found(*FACTS).keys()
