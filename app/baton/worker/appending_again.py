"""Appending batches again that a failover lost.

The lost batches of a stream are appended one after the other, and those of different streams in the same statements. So
a failure or another history in between leaves no gap: what is in the log is the beginning of what was lost. Batches
keep their boundaries, since relays of pods may end at any of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from uuid import UUID

from ..db.event_log import Append
from ..db.postgres import DATA_ERRORS, Connection
from .appending import STATEMENT_BYTES, append

logger = logging.getLogger(__name__)


async def append_again(
    connection: Connection, lost: Iterable[Sequence[Append]], current_history: str | None
) -> list[Append]:
    """Append what each stream lost; return the batches that were written.

    After a batch that is not written, nothing more of its stream is: the row has another claim.

    Raises:
        HistoryChanged: the log must be compared again before anything else is written.
    """
    written: list[Append] = []
    remaining = [iter(batches) for batches in lost]
    while remaining:
        heads = [(batches, item) for batches in remaining if (item := next(batches, None)) is not None]
        done: set[UUID] = set()
        for group in _statements([item for _, item in heads]):
            done |= await _append(connection, group, current_history)
        written += [item for _, item in heads if item.stream_id in done]
        remaining = [batches for batches, item in heads if item.stream_id in done]
    return written


async def _append(connection: Connection, group: Sequence[Append], current_history: str | None) -> set[UUID]:
    try:
        return await append(connection, group, current_history)
    except DATA_ERRORS as error:
        # The error is not logged as text, which contains the row that was refused.
        logger.error("The database refused batches that it has lost: %s", type(error).__name__)
        return set()


def _statements(items: Iterable[Append]) -> Iterator[list[Append]]:
    """Divide batches among statements of `STATEMENT_BYTES` at most, unless one batch is larger."""
    group: list[Append] = []
    size = 0
    for item in items:
        if group and size + item.size_bytes > STATEMENT_BYTES:
            yield group
            group, size = [], 0
        group.append(item)
        size += item.size_bytes
    if group:
        yield group
