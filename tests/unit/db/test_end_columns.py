"""The columns of a stream's end: every list of them follows from the one in `end_columns`."""

from __future__ import annotations

from dataclasses import fields

from baton.db import end_columns
from baton.db.streams import Stream
from baton.outcome import Outcome, Timings
from baton.schema.grants import GRANTS
from baton.schema.tables import metadata

OUTCOME = Outcome.failed(
    "worker_lost",
    "Gone.",
    usage={"input_tokens": 3},
    timings=Timings(2.5, 0.5, 7),
    usage_by_attempt=[{"epoch": 1, "usage": {"input_tokens": 3}}, {"epoch": 2, "usage": {}}],
    answered_by={"name": "fast", "attempts": []},
)


def test_each_column_has_a_field_and_a_column_of_the_table() -> None:
    table = metadata.tables["baton.stream"].columns
    assert set(end_columns.CHANGED) <= {column.name for column in table}
    assert set(end_columns.NAMES) <= {field.name for field in fields(Stream)}


def test_the_values_of_an_end_are_read_back_from_its_row() -> None:
    row = dict(zip(end_columns.NAMES, end_columns.values(OUTCOME), strict=True))
    assert end_columns.decoded(row) == {
        "status": "failed",
        "finish_reason": "error",
        "error_code": "worker_lost",
        "error_message": "Gone.",
        "usage": {"input_tokens": 3},
        "tokens": 7,
        "time_to_first_token_seconds": 0.5,
        "duration_seconds": 2.5,
        "usage_by_attempt": OUTCOME.usage_by_attempt,
        "answered_by": OUTCOME.answered_by,
    }


def test_pods_and_workers_may_change_all_columns_of_an_end() -> None:
    for service, grants in GRANTS.items():
        updates = [grant.columns for grant in grants if (grant.privilege, grant.on) == ("UPDATE", "stream")]
        changed = {name for columns in updates for name in columns}
        assert set(end_columns.CHANGED) <= changed, service
