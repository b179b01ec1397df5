"""An outbox that is its own writer: it writes into memory, at moments that do not depend on time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..db.stream_queue import Claim
from ..generators import Generator, stopper
from ..outcome import Outcome
from ..usage import Bill
from ..worker.outbox import Lost, Outbox
from ..worker.run import resumes
from .memory import StreamMemory


@dataclass(frozen=True, slots=True)
class Kill:
    """When to kill a worker: after it has yielded the event with this number, or after the write with this number.

    Event 0: when it has yielded its first event, and nothing is written.
    """

    event: int | None = None
    write: int | None = None


class MemoryOutbox(Outbox):
    """The outbox of one run. It writes after `flush_every` events, and where the run waits for that.

    A kill drops what was not written, as the end of a process does. Then nothing more is taken or written.
    """

    __slots__ = ("_flush_every", "_kill", "_memory", "resumes")

    def __init__(
        self,
        memory: StreamMemory,
        claim: Claim,
        generator: Generator,
        *,
        flush_every: int,
        kill: Callable[[], Kill],
        on_lost: Callable[[Lost], None],
    ) -> None:
        self.resumes = resumes(claim, memory.tail)
        super().__init__(
            claim.stream_id,
            claim.epoch,
            memory.tail,
            on_ready=lambda _outbox: None,
            on_lost=on_lost,
            max_events=flush_every + 1,
            resumes=self.resumes,
            claim_token=claim.claim_token,
            bill=Bill(claim.epoch, memory.usage),
            interruption=claim.interruption,
            stop_with=claim.generator if stopper(generator) else None,
        )
        self._memory = memory
        self._flush_every = flush_every
        self._kill = kill

    @property
    def killed(self) -> bool:
        """Whether the worker was killed."""
        return self.lost is Lost.FENCED

    def advance(self) -> None:
        """Note that the run has taken what the generator yielded, and asks for more: write what is due."""
        pending = len(self._lines)
        kill = self._kill()
        if kill.event == 0 and pending:
            self.kill()
        elif pending >= self._flush_every or (self.has_unsaved_state and not pending):
            self.write()
        elif kill.event and self.tail + pending >= kill.event:
            self.kill()

    def write(self) -> None:
        """Write everything that there is."""
        while (item := self.take()) is not None:
            self._memory.write(item)
            self.written(item.last_seq, terminal=item.outcome is not None)
            if not self.closed.is_set() and self._is_due:
                self.kill()

    def kill(self) -> None:
        """Lose the stream, as a worker that is killed does."""
        self.lose(Lost.FENCED)

    @property
    def _is_due(self) -> bool:
        kill = self._kill()
        by_event = kill.event is not None and 0 < kill.event <= self.tail
        return by_event or (kill.write is not None and kill.write <= self._memory.writes)

    def finish(self, outcome: Outcome) -> None:
        """Add the terminal event, and write it."""
        super().finish(outcome)
        self.write()

    async def flushed(self) -> None:
        """Write everything that was put or saved."""
        self.write()

    async def wait_for_room(self) -> None:
        """Write everything, which makes room."""
        self.write()
