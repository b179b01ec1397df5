"""What maintenance keeps: how many days of streams, and which partitions of the log it drops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from .. import stream_ids
from ..db import partitions, retention
from ..db.partitions import Partition
from ..db.postgres import Connection
from ..db.retention import Kept

DAY_SECONDS: Final = partitions.DAY_SECONDS


@dataclass(frozen=True, slots=True)
class Policy:
    """How many days ahead partitions exist, and how many whole days streams are kept.

    `partition_days` is how many days a new partition holds; None chooses the fewest days with which the number of
    partitions stays small.
    """

    days_ahead: int
    retention_days: int
    partition_days: int | None = None

    @property
    def width_days(self) -> int:
        """How many days a new partition holds."""
        return self.partition_days or partitions.width_for(self.retention_days, self.days_ahead)

    def horizon(self, moment: float) -> UUID:
        """Return the smallest id to keep at a moment (seconds since 1970). It is the first id of a day (UTC)."""
        today = moment // DAY_SECONDS * DAY_SECONDS
        return stream_ids.first_id(max(0, today - self.retention_days * DAY_SECONDS))


@dataclass(frozen=True, slots=True)
class Due:
    """The partitions to drop unless a stream keeps them, and the name of one that another session is detaching."""

    partitions: list[Partition]
    foreign: str | None = None


def due_of(found: list[Partition], horizon: UUID) -> Due:
    """Decide which of the log's partitions to drop."""
    # Postgres detaches no other partition while a detachment is pending.
    pending = [item for item in found if item.detaching]
    for item in pending:
        if not item.marked:
            return Due([], foreign=item.name)
    return Due(pending + [item for item in found if not item.detaching and item.end <= horizon])


async def keeper_of(connection: Connection, partition: Partition, *, live: bool = False) -> Kept | None:
    """Return a stream that still needs a partition; with `live`, a stream that has not ended. None to drop it."""
    # The run that began the detachment checked this, and no session has read or written the partition since.
    if partition.detaching:
        return None
    return await retention.oldest_within(connection, partition.first, partition.end, live=live)
