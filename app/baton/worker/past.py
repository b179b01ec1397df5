"""What earlier runs of a stream left: the events in the log, and the newest state.

A run that continues first appends a `resumed` event. It takes the place after the tail, so no batch of an earlier run
can still appear, and what `read` returns is final.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol
from uuid import UUID

import orjson

from ..db import event_log, stream_states
from ..db.postgres import Connection
from ..events import TOKEN_TYPES
from ..generators import SoFar
from ..snapshot import Snapshot

# Events of the runtime, which no generator yields.
_OURS: Final = frozenset({"resumed", "reset", "waiting"})


class PastSource(Protocol):
    """Where a run finds what earlier runs of its stream left: the database, or memory (`baton.testing`)."""

    async def read(self) -> Past:
        """Return the events and the newest state. No earlier run can add anything any more."""

    async def state(self) -> Any:
        """Return the newest state; None without one."""


@dataclass(frozen=True, slots=True)
class Past:
    """The log since its last `reset`, whose number is `base` (0: there is none), and the newest state since then."""

    base: int
    lines: Sequence[str]  # with the numbers from base + 1 on
    so_far: SoFar
    state: Any = None
    state_seq: int = 0
    inputs: int = 0  # that the state covers

    @property
    def empty(self) -> bool:
        """Whether viewers have got nothing that counts."""
        return all(_kind(line) in _OURS for line in self.lines)

    @property
    def tokens(self) -> int:
        """How many events count as tokens."""
        return sum(_kind(line) in TOKEN_TYPES for line in self.lines)

    @property
    def size_bytes(self) -> int:
        """The size of the events."""
        return sum(len(line.encode()) for line in self.lines)

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The events of tool calls."""
        return [orjson.loads(line) for line in self.lines if _kind(line) == "tool_call"]

    def after(self, seq: int) -> list[dict[str, Any]]:
        """Return the events of generators after a number."""
        return [orjson.loads(line) for line in self.lines[seq - self.base :] if _kind(line) not in _OURS]


async def read(connection: Connection, stream_id: UUID) -> Past:
    """Read what earlier runs left of a stream."""
    lines = [line async for page in event_log.pages(connection, stream_id) for batch in page for line in batch.lines]
    return of(lines, await stream_states.read(connection, stream_id))


def of(lines: Sequence[str], saved: stream_states.Saved | None) -> Past:
    """Return what a whole log and the newest state leave to a run. A `reset` makes an older state void."""
    resets = [number for number, line in enumerate(lines, start=1) if _kind(line) == "reset"]
    base = resets[-1] if resets else 0
    if saved is None or saved.after_seq < base:
        saved = stream_states.Saved(base, None, 0)
    return Past(base, lines[base:], _so_far(lines), saved.state, saved.after_seq, saved.inputs)


async def state(connection: Connection, stream_id: UUID) -> Any:
    """Return the newest state of a stream; None without one."""
    found = await stream_states.read(connection, stream_id)
    return None if found is None else found.state


def _so_far(lines: Sequence[str]) -> SoFar:
    snapshot = Snapshot.of(lines, len(lines))
    custom: list[dict[str, Any]] = []
    for line in lines:
        match _kind(line):
            case "custom":
                event = orjson.loads(line)
                del event["type"]
                custom.append(event)
            case "reset":
                custom.clear()
    return SoFar(
        len(lines),
        snapshot.text,
        snapshot.reasoning,
        [dict(call) for call in snapshot.tool_calls],
        snapshot.tool_results,
        custom,
        snapshot.usage,
    )


def _kind(line: str) -> str:
    """Return the type of an event: every line begins with it."""
    return line[9 : line.index('"', 9)]
