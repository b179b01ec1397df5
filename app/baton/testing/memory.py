"""What the database holds of one stream, in memory: its log, newest state, inputs and steps.

It decides nothing: the worker's own code numbers, checks and continues. It belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson

from ..db.event_log import Append, Batch
from ..db.stream_states import Saved, State
from ..db.stream_waiting import Began, Wait, event_of
from ..events import RESET_HEAD, RESUMED_HEAD
from ..generators.inbox import InputMemory
from ..generators.steps import StepKey
from ..usage import Counts, of_lines
from ..worker import past
from ..worker.outbox import Outbox
from ..worker.past import Past


@dataclass(slots=True)
class StepRun:
    """One step of a stream: its name, the result that was kept, and how often its function ran.

    `kept` is how often a later run got the result without a call of the function.
    """

    name: str
    result: Any
    ran: int = 0
    kept: int = 0


class Observer:
    """Learns what happens to a stream, as it happens. This one ignores it."""

    def event(self, seq: int, event: Mapping[str, Any]) -> None:
        """Note an event of the log."""

    def state(self, state: Any) -> None:
        """Note a state that was saved."""

    def step(self, name: str, *, kept: bool) -> None:
        """Note a step: its function ran, or a former run had kept its result."""


@dataclass(frozen=True, slots=True)
class Waited:
    """A wait that has begun: for what, until when, and whether the stream ends then."""

    reason: Any
    until: datetime.datetime
    ends: bool


@dataclass(slots=True)
class StreamMemory:
    """One stream. `writes` counts batches and states that were written on their own."""

    stream_id: UUID
    observer: Observer
    inputs_after: Mapping[int, Any] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)
    batch_epochs: list[int] = field(default_factory=list)
    saved: Saved | None = None
    inputs: InputMemory = field(default_factory=InputMemory)
    input_count: int = 0
    results: dict[StepKey, bytes] = field(default_factory=dict)
    steps: dict[StepKey, StepRun] = field(default_factory=dict)
    waited: Waited | None = None
    writes: int = 0
    on_input: Callable[[], None] = lambda: None

    @property
    def lines(self) -> list[str]:
        """The log."""
        return [line for batch in self.batches for line in batch.lines]

    @property
    def tail(self) -> int:
        """The number of the last event."""
        return self.batches[-1].last_seq if self.batches else 0

    @property
    def ended(self) -> bool:
        """Whether the log has its terminal event."""
        return bool(self.batches) and self.batches[-1].terminal

    @property
    def usage(self) -> dict[int, Counts]:
        """What each run has used."""
        return of_lines(
            (epoch, batch.events.encode()) for epoch, batch in zip(self.batch_epochs, self.batches, strict=True)
        )

    def grew(self, epoch: int) -> bool:
        """Whether a run has written more than that it resumes the stream, and has not started it over."""
        batches = zip(self.batch_epochs, self.batches, strict=True)
        lines = [line.encode() for number, batch in batches if number == epoch for line in batch.lines]
        return any(not line.startswith(RESUMED_HEAD) for line in lines) and not any(
            line.startswith(RESET_HEAD) for line in lines
        )

    def write(self, item: Append) -> None:
        """Write a batch and the state that comes with it."""
        if item.last_seq >= item.first_seq:
            self._append(item)
        if item.state is not None:
            self.save(item.state)
        self.writes += 1

    def save(self, state: State) -> None:
        """Save a state."""
        self.saved = Saved(state.after_seq, orjson.loads(state.content), state.inputs)
        self.observer.state(self.saved.state)

    def _append(self, item: Append) -> None:
        assert item.first_seq == self.tail + 1
        self.batches.append(Batch(item.first_seq, item.last_seq, item.outcome is not None, item.events.decode()))
        self.batch_epochs.append(item.epoch)
        for seq, line in enumerate(self.batches[-1].lines, item.first_seq):
            self.observer.event(seq, orjson.loads(line))
            if seq in self.inputs_after:
                self.add_input(self.inputs_after[seq])

    def add_input(self, data: Any) -> None:
        """Add an input, as the API stores it."""
        self.inputs.add(orjson.loads(orjson.dumps(data)))
        self.input_count += 1
        self.on_input()


class MemoryPast:
    """What earlier runs left (see `worker.past.PastSource`)."""

    def __init__(self, memory: StreamMemory) -> None:
        self._memory = memory

    async def read(self) -> Past:
        """Return the log and the newest state."""
        return past.of(self._memory.lines, self._memory.saved)

    async def state(self) -> Any:
        """Return the newest state."""
        return None if self._memory.saved is None else self._memory.saved.state


class MemorySteps:
    """Keeps the steps' results of one run (see `generators.steps.StepStore`)."""

    def __init__(self, memory: StreamMemory, is_lost: Callable[[], bool]) -> None:
        self._memory = memory
        self._is_lost = is_lost

    async def find(self, key: StepKey) -> bytes | None:
        """Return the result that a former run kept."""
        found = self._memory.results.get(key)
        if found is not None:
            self._memory.steps[key].kept += 1
            self._memory.observer.step(key.name, kept=True)
        return found

    async def keep(self, key: StepKey, result: bytes) -> bytes:
        """Keep a result. If the run was killed, this raises `CancelledError`, and nothing is kept."""
        noted = self._memory.steps.setdefault(key, StepRun(key.name, None))
        noted.ran += 1
        if self._is_lost():
            raise asyncio.CancelledError
        kept = self._memory.results.setdefault(key, result)
        noted.result = orjson.loads(kept)
        self._memory.observer.step(key.name, kept=False)
        return kept

    def restart(self) -> None:
        """Do nothing: everything is here."""


class MemoryWaits:
    """Begins the waits of one stream (see `worker.waiting.Waits`)."""

    def __init__(self, memory: StreamMemory, most_seconds: float) -> None:
        self._memory = memory
        self._most_seconds = most_seconds
        self.woken = False  # an input was there already, so the stream did not wait

    async def until_allowed(self) -> None:
        """Do nothing: no older code runs."""

    async def begin(self, outbox: Outbox, wait: Wait, seen: int) -> Began:
        """Save the state that comes with the wait, and append the event `waiting`.

        A stream that has got an input that the generator does not know does not wait.
        """
        if wait.state is not None:
            self._memory.save(outbox.state_at_tail(wait.state, wait.inputs))
        if self._memory.input_count > seen:
            self.woken = True
            return Began.WOKEN
        now = datetime.datetime.now(datetime.UTC)
        last = now + datetime.timedelta(seconds=self._most_seconds)
        if isinstance(wait.until, datetime.datetime):
            until, ends = min(wait.until, last), wait.until > last
        else:
            seconds = self._most_seconds if wait.until is None else min(wait.until, self._most_seconds)
            until, ends = now + datetime.timedelta(seconds=seconds), wait.until is None or wait.until > self._most_seconds
        self._memory.waited = Waited(wait.reason, until, ends)
        seq = self._memory.tail + 1
        self._memory.write(Append(outbox.stream_id, outbox.epoch, seq, seq, event_of(wait.reason, until)))
        return Began.WAITING
