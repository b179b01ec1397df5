"""The columns of a stream's row that say how the stream ended. They are listed here and nowhere else.

Every statement that ends a stream sets these columns from an `Outcome`, and the row that is read back has them. So a
new column is one line of `COLUMNS`, one field of `streams.Stream`, and a migration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import orjson

from ..outcome import Outcome


class Column(NamedTuple):
    """One column: its name, its type in Postgres, and its value for an outcome."""

    name: str
    type: str
    value: Callable[[Outcome], object]


def _json(content: object) -> str | None:
    return None if content is None else orjson.dumps(content).decode()


COLUMNS: Final = (
    Column("status", "text", lambda outcome: outcome.status),
    Column("finish_reason", "text", lambda outcome: outcome.finish_reason),
    Column("error_code", "text", lambda outcome: outcome.error_code),
    Column("error_message", "text", lambda outcome: outcome.error_message),
    Column("usage", "jsonb", lambda outcome: _json(outcome.usage)),
    Column("tokens", "integer", lambda outcome: outcome.timings.tokens),
    Column(
        "time_to_first_token_seconds",
        "double precision",
        lambda outcome: outcome.timings.time_to_first_token_seconds,
    ),
    Column("duration_seconds", "double precision", lambda outcome: outcome.timings.duration_seconds),
    Column("usage_by_attempt", "jsonb", lambda outcome: _json(outcome.usage_by_attempt)),
    Column("answered_by", "jsonb", lambda outcome: _json(outcome.answered_by)),
)
NAMES: Final = tuple(column.name for column in COLUMNS)
JSON_NAMES: Final = tuple(column.name for column in COLUMNS if column.type == "jsonb")
# An ended stream belongs to no worker, and its end is stamped by the database's clock.
_ALWAYS: Final[Mapping[str, str]] = {"finished_at": "clock_timestamp()", "worker_id": "NULL"}
# All columns that an end changes, for the grants of the roles that end streams.
CHANGED: Final = (*NAMES, *_ALWAYS)


def values(outcome: Outcome) -> tuple[object, ...]:
    """Return the columns' values, in their order."""
    return tuple(column.value(outcome) for column in COLUMNS)


def assignments(source: Callable[[str, int], str]) -> str:
    """Return what follows SET in a statement that ends a stream.

    `source` returns where a column's value comes from in that statement, given its name and its position from 0.
    """
    found = {name: source(name, position) for position, name in enumerate(NAMES)}
    return ", ".join(f"{name} = {value}" for name, value in (found | dict(_ALWAYS)).items())


def decoded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row's columns with these columns' JSON decoded."""
    parsed = {name: None if row[name] is None else orjson.loads(row[name]) for name in JSON_NAMES}
    return {**row, **parsed}
