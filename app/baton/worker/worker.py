"""A worker: claims queued streams, runs their generators, and keeps its lease.

One loop over one connection claims streams and sends heartbeats. Each claimed stream is a task of its own, and all of
them write through one `writer`. At SIGTERM `leave()` is called: the loop stops claiming, waits for the streams to end,
and hands the rest over to other workers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final

from ..backoff import Backoff
from ..db import notifications
from ..db.listener import Listener, ListenerState
from ..db.notification_delivery import check_delivery
from ..db.notifications import CANCEL_CHANNEL, QUEUE_CHANNEL
from ..db.postgres import Connection, connect
from ..db.reconnecting import keep_connected
from ..db.schema_revision import check_schema
from ..db.worker_rows import Orphan
from ..generators import Generator
from ..generators.registry import configured_models
from ..observability.metrics import Names, WorkerMetrics
from ..settings import Settings
from .claiming import Claiming
from .lease import Lease
from .notifier import Notifier
from .outbox import Lost
from .reaper import release
from .recent_batches import RecentBatches
from .run import Run
from .slots import Slots
from .telemetry import Telemetry
from .upkeep import Upkeep
from .writer import Writer

logger = logging.getLogger(__name__)

# Between two claims, however many notifications announce queued streams: any role may send them.
CLAIM_PAUSE_SECONDS: Final = 0.01


class Worker:
    """Runs until cancelled, or until `leave()` was called and its streams have ended or were handed over."""

    def __init__(self, settings: Settings, generators: Mapping[str, Generator]) -> None:
        self._settings = settings
        names = sorted(generators)
        self.metrics = WorkerMetrics(settings.worker_concurrency, silent_after_seconds=settings.silent_after_seconds)
        telemetry = Telemetry(self.metrics, Names(generators.keys(), configured_models(settings)))
        self._notifier = Notifier(
            settings.dsn, with_events=settings.notify_payloads, metrics=self.metrics, prepare=settings.prepare
        )
        self.lease = Lease(settings, names, on_new_history=self._on_new_history)
        self.writer = Writer(
            settings.dsn,
            window_seconds=settings.flush_interval_milliseconds / 1000,
            notifier=self._notifier,
            metrics=self.metrics,
            prepare=settings.prepare,
            lease_lasted=self.lease.lasted,
            recent=RecentBatches(settings.failover_keep_seconds, settings.failover_keep_bytes),
        )
        self._wake = asyncio.Event()
        self.slots = Slots(settings, generators, self.writer, self.metrics, telemetry, on_freed=self._wake.set)
        self.metrics.silences = self.slots.silences
        self.claiming = Claiming(names, self.lease, self.slots, telemetry)
        self._upkeep = Upkeep(settings, self.slots, telemetry, self.writer)
        self._leave_at: float | None = None
        self.ready = asyncio.Event()  # registered and claiming

    async def run(self) -> None:
        """Claim and run streams, and keep the lease.

        Raises:
            ConfigurationError: the database cannot be reached at the start, or its schema does not fit.
        """
        await self._check()
        listener = Listener(
            self._settings.listen_dsn,
            {QUEUE_CHANNEL: lambda _payload: self._wake.set(), CANCEL_CHANNEL: self._on_cancel},
            on_state=self._on_listener_state,
            probe_seconds=self._settings.listen_probe_seconds,
            name="baton worker listen",
        )
        services = [
            asyncio.create_task(service.run(), name=type(service).__name__)
            for service in (listener, self.writer, self._notifier)
        ]
        control = asyncio.create_task(self._control(), name="control")
        try:
            done, _ = await asyncio.wait([control, *services], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (*self.slots.tasks, control, *services):
                task.cancel()
            await asyncio.gather(*self.slots.tasks, control, *services, return_exceptions=True)

    def leave(self) -> None:
        """Stop claiming, give the streams `worker_drain_seconds` to end, hand the rest over, and let `run()` return.

        A second call hands them over at once.
        """
        self._leave_at = time.monotonic() + (0 if self._leaving else self._settings.worker_drain_seconds)
        self._wake.set()

    @property
    def _leaving(self) -> bool:
        return self._leave_at is not None

    @property
    def _may_go(self) -> bool:
        return self._leave_at is not None and (not self.slots.runs or time.monotonic() >= self._leave_at)

    async def _check(self) -> None:
        """Check what must be right at the start, and log what an operator should know."""
        for remark in self._settings.remarks:
            logger.warning(remark)
        await check_delivery(self._settings.listen_dsn, self._settings.dsn)
        connection = await connect(self._settings.dsn, name="baton worker", prepare=self._settings.prepare)
        try:
            await check_schema(connection)
        finally:
            await connection.close()

    async def _control(self) -> None:
        """Claim and send heartbeats, over a new connection whenever one is lost."""
        await keep_connected(
            self._connect,
            self._serve,
            on_failure=self._on_disconnect,
            until=lambda: self._may_go,
            backoff=Backoff(cap_seconds=self._settings.lease_seconds / 4),
        )

    async def _connect(self) -> Connection:
        # After an outage the other workers watch again as soon as they are back. So finding a dead connection, or one
        # that hangs while it is opened, must take less than the lease.
        return await connect(
            self._settings.dsn,
            timeout_seconds=max(1.0, self._settings.lease_seconds / 2),
            name="baton worker control",
            prepare=self._settings.prepare,
        )

    def _on_disconnect(self, error: Exception) -> None:
        logger.warning("The worker's connection is lost. Its streams continue in the meantime: %r", error)
        self._upkeep.disconnected()

    async def _serve(self, connection: Connection, backoff: Backoff) -> None:
        beat_at = 0.0
        self.claiming.forget()
        self._upkeep.reconnected()
        while not self._may_go:
            if time.monotonic() >= beat_at:
                beat_at = time.monotonic() + self._settings.worker_heartbeat_seconds
                await self._beat(connection)
                backoff.reset()
            self._wake.clear()
            if self._upkeep.has_cancels:
                await self._upkeep.stop_cancelled(connection)
            if not self._leaving:
                await self.claiming.claim(connection)
            self.ready.set()
            claim_at = time.monotonic() + CLAIM_PAUSE_SECONDS
            timeout = min(beat_at - time.monotonic(), self._settings.queue_poll_seconds)
            timer = asyncio.get_running_loop().call_later(max(0, timeout), self._wake.set)
            await self._wake.wait()
            timer.cancel()
            await asyncio.sleep(max(0, claim_at - time.monotonic()))
        await self._hand_over(connection)

    async def _beat(self, connection: Connection) -> None:
        """Send a heartbeat and do what comes with it, or register if there is no row for the heartbeat."""
        counters = await self.lease.renew(connection, self.metrics.tokens, self.slots.silent())
        if counters is None:
            await self._register(connection)
        else:
            assert self.lease.worker_id is not None
            await self._upkeep.run(connection, self.lease.worker_id, counters)

    async def _register(self, connection: Connection) -> None:
        """Register. If this worker was declared dead, others have its streams, and it registers as a new worker."""
        if self.lease.worker_id is not None:
            logger.warning("This worker was declared dead, and its streams were given to others.")
            runs = list(self.slots.runs.values())
            for run in runs:
                run.outbox.lose(Lost.FENCED)
            # Streams that it claimed after the others had looked have no worker now: release them.
            await self._release(connection, runs, uncount_attempt=False)
        await self.lease.register(connection)

    async def _hand_over(self, connection: Connection) -> None:
        """Give all streams back to the queue, so that another worker takes them at once, and sign off."""
        runs = list(self.slots.runs.values())
        for run in runs:
            run.abandon()
        await self._release(connection, runs, uncount_attempt=True)
        if runs:
            await notifications.announce_queued(connection)
        await self.lease.give_up(connection)

    async def _release(self, connection: Connection, runs: Sequence[Run], *, uncount_attempt: bool) -> None:
        for run in runs:
            claim = run.claim
            orphan = Orphan(claim.fence, claim.attempts, claim.on_worker_lost)
            await release(connection, orphan, max_attempts=self._settings.max_attempts, uncount_attempt=uncount_attempt)

    def _on_new_history(self) -> None:
        """Compare the log before anything is written, and look at the whole queue again."""
        self.writer.doubt()
        self._notifier.renew_keys()
        self.claiming.forget()
        self._upkeep.forget_queue()

    def _on_cancel(self, payload: str) -> None:
        if self._upkeep.note_cancel(payload):
            self._wake.set()

    def _on_listener_state(self, state: ListenerState) -> None:
        if state is ListenerState.LISTENING:
            self._wake.set()
