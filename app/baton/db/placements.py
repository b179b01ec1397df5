"""How the databases of an installation share new streams: lists of weights, each in force from a moment on.

`baton migrate` records the weights of its settings as a new list, in every database. All pods follow the recorded lists
and not their own settings, so that during a roll-out they agree where a key has its home. A list takes effect
`DELAY_SECONDS` after it was recorded: until then every pod has read it.

A list that was in force is still read: a key, or a chat, may have its streams where an older list placed it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson

from .postgres import Connection, Pool

# Pods read the lists every `READ_SECONDS`, and their clocks may differ a little.
READ_SECONDS: Final = 10
DELAY_SECONDS: Final = 30

_READ: Final = "SELECT id, weights, effective_at FROM baton.placement"
_NOW: Final = "SELECT clock_timestamp()"
_WRITE: Final = """
INSERT INTO baton.placement (id, weights, effective_at) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING
"""


@dataclass(frozen=True, slots=True)
class Placement:
    """The weight of each database by its number, from a moment on."""

    id: UUID
    weights: Mapping[int, float]
    effective_at: datetime


async def read(executor: Connection | Pool) -> list[Placement]:
    """Read the lists that one database has, in no order."""
    return [_of(row) for row in await executor.fetch(_READ)]


async def write(executor: Connection | Pool, placement: Placement) -> None:
    """Record a list in one database, unless it is there."""
    weights = {str(number): weight for number, weight in placement.weights.items()}
    await executor.execute(_WRITE, placement.id, orjson.dumps(weights).decode(), placement.effective_at)


async def now(executor: Connection | Pool) -> datetime:
    """Return the time on the database's clock."""
    found: datetime = await executor.fetchval(_NOW)
    return found


def merged(lists: Iterable[Sequence[Placement]]) -> list[Placement]:
    """Return all lists that several databases have, oldest first, each once."""
    by_id = {item.id: item for each in lists for item in each}
    return sorted(by_id.values(), key=lambda item: (item.effective_at, item.id))


def _of(row: Any) -> Placement:
    weights = {int(number): float(weight) for number, weight in orjson.loads(row["weights"]).items()}
    return Placement(row["id"], weights, row["effective_at"])
