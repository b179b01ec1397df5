"""A stream's answer at its end, as an application's end hook gets it.

It is read in the transaction that ends the stream, before the end is written. The reader also has to know the end
itself: the outcome, and the events that will be appended with it. Nothing is locked, so the writer of the end must
check afterwards that the log has not grown in the meantime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
import orjson

from ..events import FinalStatus
from ..outcome import Outcome, TimingsContent
from ..snapshot import Snapshot, ToolCall
from . import event_log
from .event_log import Append
from .postgres import Connection

_STREAM: Final = """
SELECT id, tenant, generator, input, metadata, attempts, created_at, epoch, claim_token,
       status IN ('completed', 'failed', 'cancelled') AS ended, answered_by,
       coalesce(finished_at, clock_timestamp()) AS ended_at
FROM baton.stream WHERE id = $1
"""


@dataclass(frozen=True, slots=True)
class EndedAnswer:
    """A stream that ends: what it was created from, its answer, and how it ended.

    `text`, `reasoning`, `tool_calls` and `tool_results` are what a client has at the end: what came before a restart of
    the answer is not part of them. `input` and `metadata` are as the creator sent them. `error` has a `code` and a
    `message` if the status is `failed`. `usage` is the sum of all attempts. `answered_by` is what a built-in provider
    recorded. `events` is the number of the last event.
    """

    id: UUID
    tenant: str
    generator: str
    input: Any
    metadata: Mapping[str, Any]
    status: FinalStatus
    finish_reason: str | None
    error: Mapping[str, str | None] | None
    text: str
    reasoning: str
    tool_calls: Sequence[ToolCall]
    tool_results: Sequence[Mapping[str, Any]]
    usage: Mapping[str, Any] | None
    timings: TimingsContent
    answered_by: Mapping[str, Any] | None
    attempts: int
    events: int
    created_at: datetime
    ended_at: datetime


async def before_append(connection: Connection, item: Append) -> EndedAnswer | None:
    """Return the answer that a terminal batch will end; None if the batch has lost its claim or its place."""
    row = await connection.fetchrow(_STREAM, item.stream_id)
    if row is None or row["ended"] or (row["epoch"], row["claim_token"]) != (item.epoch, item.claim_token):
        return None
    lines = await _lines(connection, item.stream_id)
    if len(lines) != item.first_seq - 1:
        return None
    assert item.outcome is not None
    return _answer(row, [*lines, *item.events.decode().split("\n")], item.outcome)


async def before_end(connection: Connection, stream_id: UUID, outcome: Outcome) -> EndedAnswer | None:
    """Return the answer that a terminal event alone will end; None if the stream has ended or has no row."""
    row = await connection.fetchrow(_STREAM, stream_id)
    lines = await _lines(connection, stream_id)
    if row is None or row["ended"] or _is_end(lines):
        return None
    return _answer(row, [*lines, outcome.encode().decode()], outcome)


async def after_end(connection: Connection, stream_id: UUID) -> EndedAnswer | None:
    """Return the answer of a stream that has ended; None if it has not, or is gone."""
    row = await connection.fetchrow(_STREAM, stream_id)
    lines = await _lines(connection, stream_id)
    if row is None or not _is_end(lines):
        return None
    return _answer(row, lines, Outcome.decode(lines[-1].encode()))


async def _lines(connection: Connection, stream_id: UUID) -> list[str]:
    return [line async for page in event_log.pages(connection, stream_id) for batch in page for line in batch.lines]


def _is_end(lines: Sequence[str]) -> bool:
    return bool(lines) and orjson.loads(lines[-1])["type"] == "done"


def _answer(row: asyncpg.Record, lines: Sequence[str], outcome: Outcome) -> EndedAnswer:
    snapshot = Snapshot.of(lines, len(lines))
    answered_by = outcome.answered_by or (None if row["answered_by"] is None else orjson.loads(row["answered_by"]))
    error = {"code": outcome.error_code, "message": outcome.error_message}
    return EndedAnswer(
        row["id"],
        row["tenant"],
        row["generator"],
        orjson.loads(row["input"]),
        orjson.loads(row["metadata"]),
        outcome.status,
        outcome.finish_reason,
        None if outcome.error_code is None else error,
        snapshot.text,
        snapshot.reasoning,
        snapshot.tool_calls,
        snapshot.tool_results,
        outcome.usage,
        outcome.timings.as_dict(),
        answered_by,
        row["attempts"],
        len(lines),
        row["created_at"],
        row["ended_at"],
    )
