"""A worker: claims queued streams, runs their generators, and keeps its lease.

One loop over one connection claims, sends the heartbeat, and watches the other workers (`reaper`). Each claimed stream
is a task of its own (`run`), and all of them write through one `writer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import asyncpg

from ..backoff import Backoff
from ..db import event_log, partitions, stream_queue, streams, worker_rows
from ..db.history import HistoryWatch
from ..db.listener import Listener, ListenerState, check_delivery
from ..db.notifications import CANCEL_CHANNEL, QUEUE_CHANNEL
from ..db.postgres import CONNECTION_ERRORS, Connection, Place, check_schema, connect
from ..db.queue_floor import SWEEP_SECONDS, QueueFloor
from ..db.stream_queue import Claim
from ..db.worker_rows import Owned
from ..errors import ConfigurationError
from ..generators import Generator
from ..generators.registry import configured_models
from ..generators.requested_model import RequestedModel, asked_by
from ..observability import log_context, stream_end, traceparent, tracing
from ..observability.metrics import Names, WorkerMetrics
from ..observability.tracing import Span
from ..outcome import Outcome
from ..pace import Pace
from ..settings import Settings
from ..usage import Bill
from .notifier import Notifier
from .outbox import Lost, Outbox
from .reaper import Reaper, release
from .run import Bounds, Run
from .witness import Beat, Witness
from .writer import Writer

logger = logging.getLogger(__name__)

PARTITIONS_SECONDS: Final = 3600
# Between two claims, however many notifications say that a stream was queued: anybody may send them.
CLAIM_PAUSE_SECONDS: Final = 0.01


class Worker:
    """Runs until cancelled, or until `leave()` was called and its streams have ended or were handed back."""

    def __init__(self, settings: Settings, generators: Mapping[str, Generator]) -> None:
        self._settings = settings
        self._generators = generators
        self.metrics = WorkerMetrics(settings.worker_concurrency, silent_after_seconds=settings.silent_after_seconds)
        self.metrics.silences = self._silences
        self._names = Names(generators.keys(), configured_models(settings))
        self._notifier = Notifier(
            settings.dsn, with_events=settings.notify_payloads, metrics=self.metrics, prepare=settings.prepare
        )
        self._writer = Writer(
            settings.dsn,
            window_seconds=settings.flush_interval_milliseconds / 1000,
            notifier=self._notifier,
            metrics=self.metrics,
            prepare=settings.prepare,
            vouch=lambda connection, left: self._witness.vouch(connection, left, self._worker_id),
        )
        self._reaper = Reaper(
            lease_seconds=settings.lease_seconds,
            max_attempts=settings.max_attempts,
            max_pause_seconds=settings.lease_seconds / 2,
            on_end=self._count_end,
        )
        # After an outage pods must have had the time to write down what was watched meanwhile.
        self._unwatched_after_seconds = 2 * settings.watch_interval_seconds + settings.database_timeout_seconds
        self._bounds = Bounds(
            max_event_bytes=settings.max_event_bytes,
            max_events=settings.max_stream_events,
            max_bytes=settings.max_stream_bytes,
        )
        self._runs: dict[UUID, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._asked_to_stop: set[UUID] = set()  # by notifications, which the rows must confirm
        self._watch = HistoryWatch(self._on_new_history)
        self._witness = Witness(
            lease_seconds=settings.lease_seconds, heartbeat_seconds=settings.worker_heartbeat_seconds
        )
        self._worker_id: UUID | None = None
        self._place: Place | None = None  # of this worker's row
        self._queue = QueueFloor()  # of the streams that this worker can serve
        # A stream that committed late is not overdue yet: only the claims are in a hurry to find it.
        self._whole_queue = QueueFloor(late_look_seconds=SWEEP_SECONDS)
        # What reads an index from its start may take long while an old snapshot is open.
        self._owned_pace = Pace(factor=100)
        self._overdue_pace = Pace(factor=20)
        self._leave_at: float | None = None
        self._partitions_due_at = 0.0
        self.ready = asyncio.Event()  # registered and claiming

    async def run(self) -> None:
        """Work.

        Raises:
            ConfigurationError: the database cannot be reached at the start, or its schema does not fit.
        """
        for remark in self._settings.remarks:
            logger.warning(remark)
        await check_delivery(self._settings.listen_dsn, self._settings.dsn)
        connection = await connect(self._settings.dsn, name="baton worker", prepare=self._settings.prepare)
        try:
            await check_schema(connection)
        finally:
            await connection.close()
        listener = Listener(
            self._settings.listen_dsn,
            {QUEUE_CHANNEL: lambda _payload: self._wake.set(), CANCEL_CHANNEL: self._cancel},
            on_state=self._listening,
            probe_seconds=self._settings.listen_probe_seconds,
            name="baton worker listen",
        )
        services = [
            asyncio.create_task(service.run(), name=type(service).__name__)
            for service in (listener, self._writer, self._notifier)
        ]
        control = asyncio.create_task(self._control(), name="control")
        try:
            done, _ = await asyncio.wait([control, *services], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (*self._tasks, control, *services):
                task.cancel()
            await asyncio.gather(*self._tasks, control, *services, return_exceptions=True)

    def leave(self) -> None:
        """Stop claiming; give the streams `worker_drain_seconds` to end, hand the rest over, and let `run()` return.

        Called again, do so at once.
        """
        self._leave_at = time.monotonic() + (0 if self._leaving else self._settings.worker_drain_seconds)
        self._wake.set()

    @property
    def _leaving(self) -> bool:
        return self._leave_at is not None

    @property
    def _may_go(self) -> bool:
        return self._leave_at is not None and (not self._runs or time.monotonic() >= self._leave_at)

    async def _control(self) -> None:
        """Claim, beat, watch; on a new connection whenever one is lost."""
        lease_seconds = self._settings.lease_seconds
        backoff = Backoff(cap_seconds=lease_seconds / 4)
        while not self._may_go:
            try:
                # After an outage others begin to watch as soon as they are back. To find a dead connection, or one that
                # hangs in opening, must take less than the lease then.
                connection = await connect(
                    self._settings.dsn,
                    timeout_seconds=max(1.0, lease_seconds / 2),
                    name="baton worker control",
                    prepare=self._settings.prepare,
                )
                try:
                    await self._serve(connection, backoff)
                finally:
                    connection.terminate()
            except (*CONNECTION_ERRORS, asyncpg.PostgresError, ConfigurationError) as error:
                logger.warning("The worker's connection is lost, and its streams go on meanwhile: %r", error)
                self._reaper.forget()
                await backoff.sleep()

    async def _serve(self, connection: Connection, backoff: Backoff) -> None:
        beat_at = 0.0
        # The reply to a claim may have been lost with the last connection, and this may be another server.
        self._owned_pace.hurry()
        self._queue.forget()
        self._whole_queue.forget()
        while not self._may_go:
            if time.monotonic() >= beat_at:
                beat_at = time.monotonic() + self._settings.worker_heartbeat_seconds
                await self._beat(connection)
                backoff.reset()
            self._wake.clear()
            if self._asked_to_stop:
                await self._stop_cancelled(connection)
            if not self._leaving:
                await self._claim(connection)
            self.ready.set()
            claim_at = time.monotonic() + CLAIM_PAUSE_SECONDS
            timeout = min(beat_at - time.monotonic(), self._settings.queue_poll_seconds)
            timer = asyncio.get_running_loop().call_later(max(0, timeout), self._wake.set)
            await self._wake.wait()
            timer.cancel()
            await asyncio.sleep(max(0, claim_at - time.monotonic()))
        await self._hand_over(connection)

    async def _beat(self, connection: Connection) -> None:
        """Raise the counter, or register where no row is left to raise it in; then do what comes with each beat."""
        counters = await self._watch.look(connection)
        beat = Beat(time.monotonic(), counters)
        place = None
        if self._worker_id is not None:
            place = await worker_rows.heartbeat(connection, self._worker_id, self.metrics.tokens, self._silent())
        if self._worker_id is None or place is None:
            await self._register(connection)
            self._witness.note(self._watch.history or "", beat)
            return
        self._witness.note(self._watch.history or "", beat)
        self._place = place
        await self._look_after(connection, self._worker_id, counters)

    async def _look_after(self, connection: Connection, worker_id: UUID, counters: Mapping[UUID, int]) -> None:
        """Hear what to cancel, hand back what is not running here, keep to the limits of time, and watch the others."""
        trust_watched = self._reaper.steady_seconds() > self._unwatched_after_seconds
        for item in await self._owned(connection, worker_id):
            run = self._runs.get(item.fence.stream_id)
            if run is None:
                # The reply to a claim was lost, or to the flush of a terminal event whose row somebody else must close.
                await streams.requeue(connection, item.fence, uncount_attempt=True)
            elif item.cancelled:
                run.stop(Outcome.cancelled())
            elif item.unwatched and trust_watched:
                run.stop(streams.UNWATCHED)
        for run in self._runs.values():
            run.enforce(
                max_duration=self._settings.max_duration_seconds, idle_timeout=self._settings.idle_timeout_seconds
            )
        await self._note_first_tokens(connection)
        await self._create_partitions(connection)
        await self._reaper.look(connection, worker_id, counters)
        await self._end_overdue(connection, unwatched=trust_watched)

    async def _note_first_tokens(self, connection: Connection) -> None:
        """Write the first tokens since the last beat into the rows of their streams, for those who look at them."""
        due = {
            run.outbox.fence: seconds
            for run in self._runs.values()
            if not run.first_token_noted and (seconds := run.time_to_first_token_seconds) is not None
        }
        if due:
            for stream_id in await streams.note_first_tokens(connection, due):
                if run := self._runs.get(stream_id):
                    run.first_token_noted = True

    async def _owned(self, connection: Connection, worker_id: UUID) -> list[Owned]:
        """Return the streams that are this worker's by the database: all, or where that is slow, those of its runs."""
        if not self._owned_pace.due:
            return await worker_rows.owned(connection, worker_id, list(self._runs))
        with self._owned_pace.timed():
            return await worker_rows.owned(connection, worker_id)

    async def _end_overdue(self, connection: Connection, *, unwatched: bool) -> None:
        """End the queued streams that nobody took in time. While one of them stays, the floor stays below it."""
        if not self._overdue_pace.due:
            return
        with self._overdue_pace.timed():
            await self._whole_queue.look(lambda since: stream_queue.first_queued(connection, since))
            found = await stream_queue.overdue(
                connection,
                self._settings.queue_timeout_seconds,
                unwatched=unwatched,
                since=self._whole_queue.since,
            )
        for outcome, generator in await stream_queue.end_overdue(connection, found):
            self._count_end(outcome, generator)

    def _on_new_history(self) -> None:
        """Compare the log before anything is written, and look at the whole queue again."""
        self._writer.doubt()
        self._notifier.renew_seals()
        self._queue.forget()
        self._whole_queue.forget()

    async def _create_partitions(self, connection: Connection) -> None:
        """Have the partitions of the coming days at hand, hour by hour."""
        if time.monotonic() < self._partitions_due_at:
            return
        self._partitions_due_at = time.monotonic() + PARTITIONS_SECONDS
        try:
            await partitions.create_ahead(connection, self._settings.partition_days_ahead)
        except asyncpg.PostgresError as error:
            logger.error("Partitions cannot be created ahead, and `baton maintain` must do it: %s", error)

    async def _register(self, connection: Connection) -> None:
        """Become a worker, or a new one after having been declared dead: then others have the streams."""
        if self._worker_id is not None:
            logger.warning("This worker was declared dead, and its streams were given to others.")
            runs = list(self._runs.values())
            for run in runs:
                run.outbox.lose(Lost.FENCED)
            # All but what it claimed after the others had looked: that is nobody's now.
            await self._release(connection, runs, uncount_attempt=False)
        self._worker_id = await worker_rows.register(
            connection,
            self._settings.worker_name,
            sorted(self._generators),
            self._settings.worker_concurrency,
        )
        self._place = await worker_rows.place(connection, self._worker_id)
        logger.info("Worker %s is ready for %s", self._settings.worker_name, ", ".join(sorted(self._generators)))

    async def _claim(self, connection: Connection) -> None:
        """Claim as many queued streams as there are free slots."""
        assert self._worker_id is not None
        free = self._settings.worker_concurrency - len(self._runs)
        room_bytes = self._settings.worker_max_total_input_bytes - sum(
            run.claim.input_bytes for run in self._runs.values()
        )
        if free <= 0 or room_bytes <= 0:
            return
        generators = list(self._generators)
        if self._queue.due:
            await self._queue.look(lambda since: stream_queue.first_queued(connection, since, generators))
        claims = await stream_queue.claim(
            connection,
            self._worker_id,
            generators,
            free,
            place=self._place,
            since=self._queue.since,
            max_bytes=room_bytes,
        )
        for item in claims:
            if item.rewound:
                if await streams.end_claimed(connection, item.fence, streams.REWOUND):
                    self._count_end(streams.REWOUND, item.generator)
                continue
            tail = await event_log.read_tail(connection, item.stream_id) if item.epoch > 1 else event_log.Tail()
            if tail.outcome is None:
                used = await event_log.read_usage(connection, item.stream_id) if tail.last_seq else {}
                self._start(item, tail.last_seq, Bill(item.epoch, used))
            else:
                # It landed while the stream was being taken away, when its row was no longer its writer's to close.
                await streams.close(connection, item.stream_id, item.epoch, tail.outcome)

    def _start(self, claim: Claim, tail: int, bill: Bill) -> None:
        outbox = Outbox(
            claim.stream_id,
            claim.epoch,
            tail,
            on_ready=self._writer.ready,
            on_lost=lambda lost: self._lost(run, lost),
            max_events=self._settings.buffer_events,
            may_reset=claim.on_worker_lost == "retry",
            claim_token=claim.claim_token,
            history=claim.history,
            bill=bill,
        )
        generator = self._generators[claim.generator]
        asked = asked_by(generator, claim.input)
        labels = self._names.labels(claim.generator, asked.model)
        run = Run(claim, generator, outbox, self._bounds, self.metrics, labels=labels)
        self._runs[claim.stream_id] = run
        self._writer.add(outbox)
        if tail > 0:
            outbox.begin_anew()
        if claim.cancelled:
            run.stop(Outcome.cancelled())
        task = asyncio.create_task(self._see_through(run, asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _see_through(self, run: Run, asked: RequestedModel) -> None:
        """Run a stream to its end, and free its slot."""
        self.metrics.running += 1
        if run.claim.epoch == 1:
            self.metrics.queue_seconds.of(run.labels.generator).observe(run.claim.queued)
        try:
            with log_context.of_stream(run.claim.stream_id):
                await self._generate(run, asked)
        finally:
            self.metrics.used(run.labels, run.outbox.bill.own or {})
            self.metrics.running -= 1
            self._writer.remove(run.outbox)
            # Unless this worker, once declared dead, has claimed the stream again meanwhile.
            if self._runs.get(run.claim.stream_id) is run:
                del self._runs[run.claim.stream_id]
            self._wake.set()

    async def _generate(self, run: Run, asked: RequestedModel) -> None:
        """Run a stream's generator in the trace of the request that created the stream, and tell how it ended."""
        claim = run.claim
        about: dict[str, tracing.Value | None] = {
            "baton.stream.id": str(claim.stream_id),
            "baton.tenant": claim.tenant,
            "baton.attempt": claim.attempts,
            "baton.epoch": claim.epoch,
            "gen_ai.operation.name": "chat" if asked.provider else "invoke_agent",
            "gen_ai.agent.name": claim.generator,
            "gen_ai.provider.name": asked.provider,
            "gen_ai.request.model": asked.model,
            "gen_ai.request.stream": True if asked.provider else None,
        }
        parent = traceparent.parse(claim.traceparent)
        with tracing.span("generate", parent, kind="internal", attributes=about) as span:
            started_at = time.time()
            outcome = await run.run()
            if span.recorded:
                span.set(_used(run))
            if outcome is None:
                return  # somebody else has the stream, and ends it
            self.metrics.ended.add(*run.labels, outcome.status, outcome.code)
            self.metrics.stream_seconds.of(*run.labels).observe(outcome.timings.duration_seconds)
            if span.recorded:
                _tell(span, run, outcome, started_at)
            stream_end.note(claim.stream_id, outcome, **_ended(run, outcome, asked))

    async def _hand_over(self, connection: Connection) -> None:
        """Give all streams back to the queue, so that another worker has them at once, and sign off."""
        runs = list(self._runs.values())
        for run in runs:
            run.abandon()
        await self._release(connection, runs, uncount_attempt=True)
        if runs:
            await event_log.hint(connection, QUEUE_CHANNEL, [""])
        if self._worker_id is not None:
            await worker_rows.remove(connection, self._worker_id)

    async def _release(self, connection: Connection, runs: Sequence[Run], *, uncount_attempt: bool) -> None:
        for run in runs:
            claim = run.claim
            orphan = worker_rows.Orphan(claim.fence, claim.attempts, claim.on_worker_lost)
            await release(connection, orphan, max_attempts=self._settings.max_attempts, uncount_attempt=uncount_attempt)

    def _count_end(self, outcome: Outcome, generator: str) -> None:
        """Count the end of a stream that had no run here."""
        self.metrics.ended.add(*self._names.labels(generator), outcome.status, outcome.code)

    def _silences(self) -> list[tuple[str, float]]:
        """For how long each stream has been silent. The thread that answers Prometheus calls it."""
        return [(run.labels.generator, run.silent_seconds) for run in list(self._runs.values())]

    def _silent(self) -> dict[UUID, float]:
        """Return the streams that are silent for too long, for the worker's row."""
        seconds = {stream_id: run.silent_seconds for stream_id, run in self._runs.items()}
        return {
            stream_id: found for stream_id, found in seconds.items() if found >= self._settings.silent_after_seconds
        }

    def _lost(self, run: Run, lost: Lost) -> None:
        stream_id = run.claim.stream_id
        logger.warning(
            "Stream %s is lost to this worker: %s.", stream_id, lost.value, extra={"stream_id": str(stream_id)}
        )
        if lost.outcome is None:
            run.abandon()
        else:
            run.stop(lost.outcome)

    def _cancel(self, payload: str) -> None:
        """Hear that a stream may be to stop: look at its row soon. The heartbeat looks in case this gets lost."""
        with contextlib.suppress(ValueError):
            if (stream_id := UUID(payload)) in self._runs:
                self._asked_to_stop.add(stream_id)
                self._wake.set()

    async def _stop_cancelled(self, connection: Connection) -> None:
        asked, self._asked_to_stop = self._asked_to_stop, set()
        for stream_id in await worker_rows.cancelled(connection, list(asked)):
            if run := self._runs.get(stream_id):
                run.stop(Outcome.cancelled())

    def _listening(self, state: ListenerState) -> None:
        if state is ListenerState.LISTENING:
            self._wake.set()


def _ended(run: Run, outcome: Outcome, asked: RequestedModel) -> dict[str, Any]:
    """What the log is to say of a stream that has ended here."""
    claim, timings = run.claim, outcome.timings
    return {
        "tenant": claim.tenant,
        "generator": claim.generator,
        "model": asked.model,
        "provider": asked.provider,
        "attempt": claim.attempts,
        "epoch": claim.epoch,
        "events": run.outbox.tail,
        "size_bytes": run.size_bytes,
        "tokens": timings.tokens,
        "queue_seconds": claim.queued,
        "time_to_first_token_seconds": timings.time_to_first_token_seconds,
        "duration_seconds": timings.duration_seconds,
        "total_seconds": claim.queued + claim.elapsed + timings.duration_seconds,
    }


def _used(run: Run) -> dict[str, tracing.Value | None]:
    """What this attempt has used, by the conventions for generative AI."""
    usage = run.outbox.bill.own or {}
    return {
        "gen_ai.usage.input_tokens": usage.get("input_tokens"),
        "gen_ai.usage.output_tokens": usage.get("output_tokens"),
        "gen_ai.usage.cache_read.input_tokens": usage.get("cached_tokens"),
        "gen_ai.usage.cache_creation.input_tokens": usage.get("cache_write_tokens"),
        "gen_ai.usage.reasoning.output_tokens": usage.get("reasoning_tokens"),
    }


def _tell(span: Span, run: Run, outcome: Outcome, started_at: float) -> None:
    """Say in a span how a stream ended: by the conventions for generative AI, where they have a word for it."""
    timings = outcome.timings
    span.set(
        {
            "baton.status": outcome.status,
            "baton.events": run.outbox.tail,
            "baton.tokens": timings.tokens,
            "gen_ai.response.finish_reasons": [outcome.finish_reason] if outcome.finish_reason else None,
            "gen_ai.response.time_to_first_chunk": timings.time_to_first_token_seconds,
        }
    )
    if timings.time_to_first_token_seconds is not None:
        span.event("first token", started_at + timings.time_to_first_token_seconds)
    if outcome.status == "failed":
        span.fail(outcome.code)
