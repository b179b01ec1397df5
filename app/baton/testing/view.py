"""What a test can look at: the stream as it is now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import orjson

from ..events import Status
from ..outcome import Outcome
from ..snapshot import Snapshot, SnapshotContent
from .dialects import DialectName, Seen, seen_by
from .memory import StepRun
from .simulation import Simulation


class StreamView:
    """A simulated stream, to look at."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._memory = simulation.memory

    @property
    def stream_id(self) -> UUID:
        """The id of the stream."""
        return self._memory.stream_id

    @property
    def events(self) -> list[dict[str, Any]]:
        """The log: each event with its number as `seq`."""
        return [{"seq": seq, **orjson.loads(line)} for seq, line in enumerate(self._memory.lines, 1)]

    @property
    def text(self) -> str:
        """The text of the answer, since the last `reset`."""
        return self._snapshot.text

    @property
    def reasoning(self) -> str:
        """The reasoning, since the last `reset`."""
        return self._snapshot.reasoning

    @property
    def snapshot(self) -> SnapshotContent:
        """The answer, as a pod's snapshot of the stream shows it."""
        return self._snapshot.as_dict()

    @property
    def status(self) -> Status:
        """The status of the stream. After a kill it is `running`, until another worker continues it."""
        if (outcome := self._outcome) is not None:
            return outcome.status
        return "running" if self._memory.waited is None else "waiting"

    @property
    def killed(self) -> bool:
        """Whether the stream's worker was killed, and no other one has taken over."""
        return self._simulation.killed

    @property
    def runs(self) -> int:
        """How often a worker has started the generator."""
        return self._simulation.runs

    @property
    def code(self) -> str | None:
        """Why the stream has ended: the code of the error, or else the finish reason; None before its end."""
        return None if self._outcome is None else self._outcome.code

    @property
    def error_message(self) -> str | None:
        """The error that clients see."""
        return None if self._outcome is None else self._outcome.error_message

    @property
    def exception(self) -> BaseException | None:
        """What the generator raised, or what is wrong with an event that it yielded. Clients never see it."""
        return self._simulation.error

    @property
    def usage(self) -> Mapping[str, Any] | None:
        """What all runs have used together."""
        return self._snapshot.usage

    @property
    def state(self) -> Any:
        """The state that was saved last. A database deletes it at the stream's end; here it stays."""
        return None if self._memory.saved is None else self._memory.saved.state

    @property
    def waiting(self) -> Mapping[str, Any] | None:
        """What the stream waits for without a worker, as `for` and `until` (a `datetime`); None if it does not."""
        waited = self._memory.waited
        return None if waited is None else {"for": waited.reason, "until": waited.until}

    @property
    def receiving(self) -> bool:
        """Whether the generator waits for an input in `request.receive()`."""
        return self._simulation.receiving

    @property
    def steps(self) -> Sequence[StepRun]:
        """The steps, in the order of their first calls, with what they returned and how often they ran."""
        return list(self._memory.steps.values())

    def as_seen_by(self, dialect: DialectName) -> Seen:
        """Return what a client of a dialect gets that follows the stream from its beginning to here.

        Raises:
            ValueError: the dialect is unknown.
        """
        return seen_by(dialect, self._memory, self._simulation.creation)

    def __repr__(self) -> str:
        """Say what the stream is and does."""
        return f"<{type(self).__name__} {self.status}, {self._memory.tail} events, run {self.runs}: {self.text!r:.80}>"

    @property
    def _snapshot(self) -> Snapshot:
        return Snapshot.of(self._memory.lines, self._memory.tail)

    @property
    def _outcome(self) -> Outcome | None:
        return Outcome.decode(self._memory.lines[-1].encode()) if self._memory.ended else None
