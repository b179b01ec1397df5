"""The slots of a worker: the streams that run here, each with an outbox at the writer and a task of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from uuid import UUID

from ..db.stream_queue import Claim
from ..generators import Generator, stopper
from ..generators.requested_model import RequestedModel, asked_by
from ..generators.steps import Steps
from ..observability import log_context
from ..observability.metrics import TokenMetrics
from ..outcome import Outcome
from ..settings import Settings
from ..usage import Bill
from .capacity import Capacity
from .feed import Bounds
from .inbox import InputRecords
from .outbox import Lost, Outbox
from .past_records import PastRecords
from .records import Records
from .run import Run, resumes
from .steps import StepRecords
from .telemetry import Telemetry
from .turns import Turns
from .waiting import Waiting
from .writer import Writer

logger = logging.getLogger(__name__)


class Slots:
    """The runs of one worker, by their streams.

    `on_freed` is called with its claim when a run has ended, and `on_room` when other workers of this process have left
    room that this one may claim. `loop_was_blocked` returns whether the event loop has just been blocked.

    All of it runs on the worker's event loop, except `silent`.
    """

    def __init__(
        self,
        settings: Settings,
        generators: Mapping[str, Generator],
        *,
        writer: Writer,
        records: Records,
        waiting: Waiting,
        tokens: TokenMetrics,
        telemetry: Telemetry,
        turns: Turns,
        capacity: Capacity,
        loop_was_blocked: Callable[[], bool],
        on_freed: Callable[[Claim], None],
        on_room: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._generators = generators
        self._writer = writer
        self._records = records
        self._waiting = waiting
        self._tokens = tokens
        self._telemetry = telemetry
        self._loop_was_blocked = loop_was_blocked
        self._on_freed = on_freed
        self._bounds = Bounds(
            max_event_bytes=settings.max_event_bytes,
            max_events=settings.max_stream_events,
            max_bytes=settings.max_stream_bytes,
            max_state_bytes=settings.max_state_bytes,
        )
        self._turns = turns
        self.runs: dict[UUID, Run] = {}
        self.share = capacity.join(self.runs, on_room)
        self.handed_over: dict[UUID, Run] = {}  # to be given back to the queue
        self.tasks: set[asyncio.Task[None]] = set()

    def start(self, claim: Claim, tail: int, bill: Bill) -> None:
        """Run a claimed stream whose log ends at `tail`. `bill` has what earlier attempts used."""
        generator = self._generators[claim.generator]
        resuming = resumes(claim, tail)
        outbox = Outbox(
            claim.stream_id,
            claim.epoch,
            tail,
            on_ready=self._writer.ready,
            on_lost=lambda lost: self._on_lost(run, lost),
            max_events=self._settings.buffer_events,
            may_reset=claim.on_worker_lost == "retry",
            resumes=resuming,
            claim_token=claim.claim_token,
            history=claim.history,
            bill=bill,
            interruption=claim.interruption,
            stop_with=claim.generator if stopper(generator) else None,
        )
        asked = asked_by(generator, claim.input)
        labels = self._telemetry.labels(claim.generator, asked.model)
        run = Run(
            claim,
            generator,
            outbox,
            self._bounds,
            metrics=self._tokens,
            earlier=PastRecords(self._records, claim.stream_id),
            steps=self._steps(outbox),
            waiting=self._waiting,
            inputs=InputRecords(self._records, claim.stream_id, claim.inputs),
            resumes=resuming,
            labels=labels,
            turns=self._turns,
        )
        self.runs[claim.stream_id] = run
        self._writer.add(outbox)
        if tail > 0 and not resuming:
            outbox.reset()
        if claim.cancelled:
            run.stop(Outcome.cancelled())
        task = asyncio.create_task(self._run(run, asked))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def enforce_limits(self) -> None:
        """Stop the runs that took, or were silent, for longer than they may.

        If the event loop was blocked until now, this waits for the next call: see `Run.note_block`.
        """
        if self._loop_was_blocked():
            return
        for run in self.runs.values():
            run.enforce(
                max_duration=self._settings.max_duration_seconds, idle_timeout=self._settings.idle_timeout_seconds
            )

    def silent(self) -> dict[UUID, float]:
        """Return the streams that have been silent for too long, and for how many seconds, for the worker's row.

        Any thread may call this.
        """
        seconds = {stream_id: run.silent_seconds for stream_id, run in list(self.runs.items())}
        return {
            stream_id: found for stream_id, found in seconds.items() if found >= self._settings.silent_after_seconds
        }

    async def _run(self, run: Run, asked: RequestedModel) -> None:
        """Run a stream to its end, and free its slot."""
        try:
            with log_context.of_stream(run.claim.stream_id):
                await self._telemetry.observe(run, asked)
        finally:
            self._writer.remove(run.outbox)
            # A worker that was declared dead may have claimed the stream again in the meantime.
            if self.runs.get(run.claim.stream_id) is run:
                del self.runs[run.claim.stream_id]
                if run.handed_over:
                    self.handed_over[run.claim.stream_id] = run
            self.share.freed(run.claim.generator)
            self._on_freed(run.claim)

    def _steps(self, outbox: Outbox) -> Steps:
        """Return the steps of a new run. A refused result is a loss that the run must know, unless it has ended."""

        def on_lost() -> None:
            if not outbox.closed.is_set():
                outbox.lose(Lost.FENCED)

        store = StepRecords(self._records, outbox.fence, first_run=outbox.epoch == 1, on_lost=on_lost)
        return Steps(store, max_result_bytes=self._settings.max_event_bytes)

    def _on_lost(self, run: Run, lost: Lost) -> None:
        stream_id = run.claim.stream_id
        stuck = (
            f" Its generator had blocked this worker for {run.blocked_seconds:.1f} s." if run.blocked_seconds else ""
        )
        logger.warning(
            "Stream %s is lost to this worker: %s.%s",
            stream_id,
            lost.value,
            stuck,
            extra=log_context.fields_of(stream_id),
        )
        if lost.outcome is None:
            run.abandon()
        else:
            run.stop(lost.outcome)
