"""Plays the workers of one stream: each run is one of the worker's own, over memory instead of a database."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid4

import orjson

from ..db.event_log import Append
from ..db.stream_queue import Claim
from ..db.stream_waiting import EXPIRED
from ..events import encode_object
from ..generators import Approval, Generator, can_continue
from ..generators.inbox import Inbox
from ..generators.steps import Steps
from ..observability.metrics import TokenMetrics
from ..settings import Settings
from ..usage import Bill
from ..worker.feed import Bounds
from ..worker.run import Run
from .memory import MemoryPast, MemorySteps, MemoryWaits, Observer, StreamMemory
from .outbox import Kill, MemoryOutbox
from .watching import Reception, WatchedGenerator

NEVER: Final = Kill()


def _default(name: str) -> Any:
    return Settings.model_fields[name].default


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of a stream, the longest wait, and how long a run may take here until it ends, waits or receives."""

    bounds: Bounds
    max_wait_seconds: float
    timeout_seconds: float | None = 60

    @classmethod
    def by_default(cls, timeout_seconds: float | None = 60) -> Limits:
        """Return the defaults of the settings."""
        names = ("max_event_bytes", "max_stream_events", "max_stream_bytes", "max_state_bytes")
        return cls(Bounds(*map(_default, names)), _default("max_wait_seconds"), timeout_seconds)

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Return what settings say, without a limit of time."""
        bounds = Bounds(
            max_event_bytes=settings.max_event_bytes,
            max_events=settings.max_stream_events,
            max_bytes=settings.max_stream_bytes,
            max_state_bytes=settings.max_state_bytes,
        )
        return cls(bounds, settings.max_wait_seconds, None)


@dataclass(frozen=True, slots=True)
class Creation:
    """A stream as its creator asks for it. `inputs_after` arrive once the log has the event of that number."""

    input: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tenant: str = ""
    approvals: Sequence[Approval] = ()
    name: str = "test"
    stream_id: UUID = field(default_factory=uuid4)
    inputs_after: Mapping[int, Any] = field(default_factory=dict)


class Simulation:
    """One stream and its workers. At most one run is going on.

    `state` says what the stream is doing: "running" in a worker or killed there, "waiting", or ended.
    """

    def __init__(
        self,
        generator: Generator,
        creation: Creation,
        limits: Limits,
        *,
        replies: Sequence[Any] = (),
        flush_every: int = 1,
        observer: Observer | None = None,
        metrics: TokenMetrics | None = None,
    ) -> None:
        """`replies` are inputs that are sent in turn, each when the stream waits for one."""
        if flush_every < 1:
            raise ValueError(f"flush_every must be 1 or greater, not {flush_every}.")
        self.creation = creation
        self.memory = StreamMemory(creation.stream_id, observer or Observer(), creation.inputs_after)
        self.error: BaseException | None = None
        self.killed = False
        self.runs = 0
        self._generator = generator
        self._limits = limits
        self._replies = list(replies)
        self._flush_every = flush_every
        self._metrics = metrics or TokenMetrics()
        self._kill = NEVER
        self._attempts = 0
        self._interruption: str | None = None
        self._run: Run | None = None  # that goes on
        self._task: asyncio.Task[Any] | None = None
        self._waits = MemoryWaits(self.memory, limits.max_wait_seconds)
        self._reception = Reception()

    @property
    def receiving(self) -> bool:
        """Whether the generator waits in `request.receive()`, and holds its worker."""
        return self._task is not None and self._reception.blocked.is_set()

    @property
    def receives_for_a_time(self) -> bool:
        """Whether it does so for a limited time."""
        return self.receiving and self._reception.timed

    @property
    def at_rest(self) -> bool:
        """Whether no run goes on."""
        return self._task is None

    async def start(self, kill: Kill = NEVER) -> None:
        """Begin the first run, and play until the stream ends, waits for what nobody sends, or is killed."""
        self._kill = kill
        self._begin()
        await self._play()

    async def take_over(self, kill: Kill = NEVER) -> None:
        """Begin another run after a kill."""
        self._kill = kill
        if self.memory.grew(self.runs) and can_continue(self._generator):
            self._attempts = 0
        self._interruption = "worker_lost"
        self._begin()
        await self._play()

    async def send(self, *data: Any, kill: Kill = NEVER) -> None:
        """Send inputs, which arrive together, and play on."""
        self._kill = kill
        self._give(*data)
        await self._play()

    async def expire(self, kill: Kill = NEVER) -> None:
        """Reach the deadline of a wait, or of a `receive`, and play on."""
        self._kill = kill
        self._reach_deadline()
        await self._play()

    async def close(self) -> None:
        """Stop a run that goes on, and write nothing more."""
        if self._run is not None and self._task is not None:
            self._run.abandon()
            await self._task
            self._task = self._run = None

    def _begin(self) -> None:
        memory, generator, creation = self.memory, self._generator, self.creation
        self.killed, self.runs, self._attempts = False, self.runs + 1, self._attempts + 1
        claim = Claim(
            creation.stream_id,
            self.runs,
            self._attempts,
            "retry",
            creation.name,
            orjson.loads(encode_object(creation.input)),
            creation.metadata,
            cancelled=False,
            tenant=creation.tenant,
            approvals=[dataclasses.asdict(approval) for approval in creation.approvals],
            continues=can_continue(generator),
            run=self.runs,
            interruption=self._interruption,
            inputs=memory.input_count,
        )
        outbox = MemoryOutbox(
            memory,
            claim,
            generator,
            flush_every=self._flush_every,
            kill=lambda: self._kill,
            on_lost=lambda _lost: run.abandon(),
        )
        self._reception = Reception()
        memory.on_input = self._reception.release
        run = Run(
            claim,
            WatchedGenerator(generator, outbox, self._reception, self._is_its_task),
            outbox,
            self._limits.bounds,
            metrics=self._metrics,
            earlier=MemoryPast(memory),
            steps=Steps(
                MemorySteps(memory, lambda: outbox.killed), max_result_bytes=self._limits.bounds.max_event_bytes
            ),
            waiting=self._waits,
            inbox=Inbox(memory.inputs),
            resumes=outbox.resumes,
        )
        if memory.tail > 0 and not outbox.resumes:
            outbox.reset()
        self._run = run
        self._task = asyncio.create_task(self._run.run())

    def _is_its_task(self, task: asyncio.Task[Any] | None) -> bool:
        return self._run is not None and self._run.has(task)

    async def _play(self) -> None:
        """Play until only the test can do something."""
        while True:
            await self._until_still()
            if self._waits.woken:
                self._waits.woken = False
                self._wake("input")
            elif self._replies and (self.receiving or self.memory.waited is not None):
                self._give(self._replies.pop(0))
            else:
                return

    async def _until_still(self) -> None:
        """Wait until the run ends, or its generator waits for an input."""
        if self._task is None or self._run is None:
            return
        blocked = asyncio.create_task(self._reception.blocked.wait())
        try:
            async with asyncio.timeout(self._limits.timeout_seconds):
                await asyncio.wait({self._task, blocked}, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            await self.close()
            raise TimeoutError(
                f"The generator did not end, wait or receive within {self._limits.timeout_seconds:g} seconds. If it "
                "waits for an input in a task of its own, give `inputs_after`. If it is slow, raise `timeout_seconds`."
            ) from None
        finally:
            blocked.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await blocked
        if self._task.done():
            self._task.result()
            self.error = self._run.error
            self.killed = not self.memory.ended and self.memory.waited is None and not self._waits.woken
            self._task = self._run = None

    def _give(self, *data: Any) -> None:
        if self.memory.ended:
            raise ValueError("The stream has ended, and takes no input.")
        for item in data:
            self.memory.add_input(item)
        if self.memory.waited is not None:
            self._wake("input")
        elif self._task is None:
            raise ValueError("The stream's worker was killed. The input is kept: call continue_() for the next run.")

    def _wake(self, reason: str) -> None:
        self.memory.waited = None
        self._interruption, self._attempts = reason, 0
        self._begin()

    def _reach_deadline(self) -> None:
        waited = self.memory.waited
        if waited is None:
            if not self.receives_for_a_time:
                raise ValueError("The stream has no deadline: it waits neither by `wait` nor by `receive(timeout)`.")
            self._reception.release(expired=True)
        elif not waited.ends:
            self._wake("deadline")
        else:
            self.memory.waited = None
            outcome = EXPIRED.billed(Bill(self.runs, self.memory.usage))
            seq = self.memory.tail + 1
            self.memory.write(Append(self.creation.stream_id, self.runs, seq, seq, outcome.encode(), outcome))
