"""The states that generators save, so that another worker can continue their streams.

A state is a JSON value as of the events that its generator had yielded. It is saved in the statement that appends the
last of these events (`event_log.append`), so both are in the database or neither is, and the batch's place in the log
decides between two workers. A state without new events has no place to compete for: `save` locks the stream's row
instead, so that it waits for a claim in progress, or the claim for it.

Each save inserts a row and deletes the one before it, by its whole key. One row that is updated would have a version
for each save, and while an old snapshot keeps vacuum away each further save would read all of them.

The end of a stream deletes its state. If the stream ends early and its generator has a `stop`, the state moves to
`baton.stop_call` in the same transaction, and a worker calls `stop` with it (see `stop_calls`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from uuid import UUID

import orjson

from .fence import Fence
from .postgres import Connection, Pool

# The types of the columns of `columns`.
TYPES: Final = ("uuid", "integer", "bytea", "text", "integer", "integer")
NAMES: Final = "stream_id, after_seq, state, stop_with, inputs, replaces"

# What every statement that saves states has in common: `{source}` returns their rows, and `replaces` is null for the
# first state of a stream.
SAVE: Final = """saved AS (
    INSERT INTO baton.stream_state (stream_id, after_seq, state, stop_with, inputs)
    SELECT stream_id, after_seq, state, stop_with, inputs FROM {source}
    ON CONFLICT (stream_id, after_seq)
    DO UPDATE SET state = excluded.state, stop_with = excluded.stop_with, inputs = excluded.inputs
    RETURNING stream_id
), replaced AS (
    DELETE FROM baton.stream_state AS s USING {source} AS f
    WHERE s.stream_id = f.stream_id AND s.after_seq = f.replaces AND f.replaces <> f.after_seq
)"""

# Locking the row makes this wait for a claim, a requeue or an end of the stream in progress, and then see it. The
# comparison of the status fits no index, so that the streams are found by their ids and not among all that run.
_SAVE_ALONE: Final = f"""
WITH fenced AS MATERIALIZED (
    SELECT s.id AS stream_id, f.after_seq, f.state, f.stop_with, f.inputs, f.replaces
    FROM unnest($1::uuid[], $2::integer[], $3::bytea[], $4::text[], $5::integer[], $6::integer[], $7::integer[],
                $8::uuid[]) AS f ({NAMES}, epoch, claim_token)
    JOIN baton.stream AS s ON s.id = f.stream_id
    WHERE coalesce(s.status = 'running', false)
      AND s.epoch = f.epoch AND s.claim_token IS NOT DISTINCT FROM f.claim_token
      AND coalesce((SELECT baton.current_history()) = $9, true)
    ORDER BY s.id FOR SHARE OF s
), {SAVE.format(source="fenced")}
SELECT stream_id FROM saved
"""  # noqa: S608

# Forgets what the streams of `{ended}` (stream_id, early) kept for a later run.
FORGET: Final = """gone AS (
    DELETE FROM baton.stream_state AS s USING {ended} AS e WHERE s.stream_id = e.stream_id
    RETURNING s.stream_id, s.after_seq, s.state, s.stop_with, e.early
), stopped AS (
    INSERT INTO baton.stop_call (stream_id, generator, state)
    SELECT DISTINCT ON (stream_id) stream_id, stop_with, state FROM gone
    WHERE early AND stop_with IS NOT NULL ORDER BY stream_id, after_seq DESC
    ON CONFLICT DO NOTHING
), forgotten AS (
    DELETE FROM baton.step AS s USING {ended} AS e WHERE s.stream_id = e.stream_id
), unread AS (
    DELETE FROM baton.input AS i USING {ended} AS e WHERE i.stream_id = e.stream_id
)"""

_READ: Final = """
SELECT after_seq, state, inputs FROM baton.stream_state WHERE stream_id = $1 ORDER BY after_seq DESC LIMIT 1
"""

_DELETE: Final = "DELETE FROM baton.stream_state WHERE stream_id = $1"


@dataclass(frozen=True, slots=True)
class State:
    """A state as JSON, the number of the last event that it covers, and how many inputs it covers.

    `replaces` is the number that the state before it covers, if there is one. `stop_with` is the name of the generator
    whose `stop` is called with the state if the stream ends early.
    """

    after_seq: int
    content: bytes
    stop_with: str | None = None
    replaces: int | None = None
    inputs: int = 0


class Saved(NamedTuple):
    """A state as it was saved, and how many events and inputs it covers."""

    after_seq: int
    state: Any
    inputs: int


async def read(executor: Connection | Pool, stream_id: UUID) -> Saved | None:
    """Return a stream's newest state; None if there is none."""
    row = await executor.fetchrow(_READ, stream_id)
    return None if row is None else Saved(row["after_seq"], orjson.loads(row["state"]), row["inputs"])


def columns(states: Sequence[tuple[UUID, State]]) -> list[list[object]]:
    """Return the columns of states, as the parameters of a statement with `SAVE`."""
    return [
        [stream_id for stream_id, _ in states],
        [item.after_seq for _, item in states],
        [item.content for _, item in states],
        [item.stop_with for _, item in states],
        [item.inputs for _, item in states],
        [item.replaces for _, item in states],
    ]


async def save_alone(connection: Connection, states: Sequence[tuple[Fence, State]], history: str | None) -> set[UUID]:
    """Save states that no batch carries, each with its stream's fence; return the streams whose claim still holds.

    None is saved if the database has another `history`.
    """
    ordered = sorted(states, key=lambda item: item[0].stream_id.bytes)
    claims = [[fence.epoch for fence, _ in ordered], [fence.claim_token for fence, _ in ordered]]
    rows = columns([(fence.stream_id, item) for fence, item in ordered])
    found = await connection.fetch(_SAVE_ALONE, *rows, *claims, history)
    return {row[0] for row in found}


async def delete(connection: Connection, stream_id: UUID) -> None:
    """Delete the state of a stream."""
    await connection.execute(_DELETE, stream_id)
