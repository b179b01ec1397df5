"""A worker of one database: claims queued streams, runs their generators, and keeps its lease.

One loop over one connection claims streams, and does the upkeep after each heartbeat. Heartbeats are sent by another
thread, so that a generator which blocks the event loop costs no stream. Each claimed stream is a task of its own, and
all of them write through one `writer`. At SIGTERM `leave()` is called: the loop stops claiming, hands over
the streams that another worker can continue, waits for the others to end, and then hands over the rest.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from ..backoff import Backoff
from ..db import notifications, stream_queue
from ..db.notifications import CANCEL_CHANNEL, INPUT_CHANNEL, KILL_WORKER_CHANNEL, QUEUE_CHANNEL
from ..db.postgres import Connection
from ..db.reconnecting import keep_connected
from ..db.stream_queue import Claim
from ..db.worker_rows import Orphan
from ..hints import hint, opening
from ..hints.transport import HintState, Owner
from ..settings import Settings
from .admission import Admission
from .claiming import Claiming
from .heartbeat import Beat, Heart, Report, connect_control
from .hooked_ends import Ends, HookedEnds
from .host import Host
from .kill_switch import KillSwitch
from .lease import Lease
from .outbox import Lost
from .reaper import release
from .recent_batches import RecentBatches
from .records import Records
from .run import Run
from .side_thread import SideThread
from .slots import Slots
from .stopping import Stopping
from .upkeep import Upkeep
from .waiting import Waiting
from .webhooks import Webhooks
from .writer import Writer

logger = logging.getLogger(__name__)

# Between two claims, however many notifications announce queued streams: any role may send them.
CLAIM_PAUSE_SECONDS: Final = 0.01

# How long a worker that leaves waits for its calls of each kind. Another worker makes the rest of them.
CALLS_SECONDS: Final = 1.0
# How long a worker that leaves waits until its last hints are sent.
SETTLE_SECONDS: Final = 1.0


class Worker:
    """Runs until cancelled, or until `leave()` was called and its streams have ended or were handed over."""

    def __init__(self, settings: Settings, host: Host, database: str = "") -> None:
        """`settings` are those of the database; its name is empty if it is the only one.

        Raises:
            ConfigurationError: calls of webhooks cannot be signed.
        """
        self._settings = settings
        self._host = host
        self.database = database
        self.metrics = host.metrics
        self._tokens = host.metrics.of_database(database, lambda: self.claims)
        hook, generators = host.end_hook, host.generators
        self._hints = opening.opened(
            settings, self._hints_owner(), name="baton worker", count=self.metrics.count_notifications
        )
        self._wake = asyncio.Event()
        self._hooked_ends = (
            None
            if hook is None
            else HookedEnds(settings.dsn, hook, hints=self._hints, metrics=self.metrics, prepare=settings.prepare)
        )
        self._ends = Ends(host.telemetry.count_end, self._hooked_ends)
        self.lease = Lease(settings, host.names, has_end_hook=hook is not None, on_change=self._wake.set)
        self.writer = Writer(
            settings.dsn,
            window_seconds=settings.flush_interval_milliseconds / 1000,
            hints=self._hints,
            metrics=self.metrics,
            prepare=settings.prepare,
            lease_lasted=self.lease.lasted,
            recent=RecentBatches(settings.failover_keep_seconds, settings.failover_keep_bytes),
            ends=self._hooked_ends,
        )
        self._records = Records(settings.dsn, prepare=settings.prepare)
        self.slots = Slots(
            settings,
            generators,
            writer=self.writer,
            records=self._records,
            waiting=Waiting(self._records, self._hints, most_seconds=settings.max_wait_seconds),
            tokens=self._tokens,
            telemetry=host.telemetry,
            turns=host.turns,
            capacity=host.capacity,
            loop_was_blocked=lambda: host.watchdog.is_late,
            on_freed=self._on_freed,
            on_room=self._wake.set,
        )
        host.join(self.slots.runs)
        self._heart = Heart(
            settings,
            report=self._report,
            hangs=lambda: host.watchdog.hangs,
            on_beat=self.lease.note,
            on_failure=self.lease.fail,
            on_new_history=self._on_new_history,
        )
        self.claiming = Claiming(generators, self.lease, self.slots, self._ends)
        self._admission = Admission(host.names, settings.max_running_streams_per_tenant, self.claiming.watermark)
        self._upkeep = Upkeep(settings, self.slots, self._ends, self.writer, self._hints)
        self._stopping = Stopping(generators, on_result=self._wake.set)
        self._webhooks = Webhooks(
            settings,
            self.metrics,
            records=Records(settings.dsn, prepare=settings.prepare, name="baton worker webhooks"),
            on_result=self._wake.set,
        )
        self._kill_switch = KillSwitch(settings.worker_name, on_kill=self._wake.set)
        self._has_gap = False  # hints may have been lost
        self._leave_at: float | None = None
        self._hurries = False  # to leave: it was asked twice
        self._connected = False
        self.ready = asyncio.Event()  # registered and claiming

    async def run(self) -> None:
        """Claim and run streams, and keep the lease. The database has been checked (see `database_check`)."""
        services = [
            asyncio.create_task(service.run(), name=type(service).__name__)
            for service in (self._hints, self.writer, SideThread(self._heart.run))
        ]
        if self._hooked_ends is not None:
            services.append(asyncio.create_task(self._hooked_ends.run(), name="HookedEnds"))
        control = asyncio.create_task(self._control(), name="control")
        try:
            done, _ = await asyncio.wait([control, *services], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (*self.slots.tasks, control, *services):
                task.cancel()
            await asyncio.gather(*self.slots.tasks, control, *services, return_exceptions=True)
            await self._stopping.aclose()
            await self._webhooks.aclose()
            self._records.close()

    def leave(self) -> None:
        """Stop claiming, hand the streams over, and let `run()` return.

        Streams that another worker can continue are handed over at once. The others get `worker_drain_seconds` to end,
        or, after a second call, no time.
        """
        self._hurries = self._leaving
        self._leave_at = time.monotonic() + (0 if self._hurries else self._settings.worker_drain_seconds)
        self.slots.share.withdraw()
        self._wake.set()

    @property
    def settings(self) -> Settings:
        """The settings of its database."""
        return self._settings

    @property
    def claims(self) -> bool:
        """Whether it claims streams at the moment. Any thread may call this."""
        return self._connected and self.lease.place is not None and not self._leaving

    @property
    def _leaving(self) -> bool:
        return self._leave_at is not None

    @property
    def _may_go(self) -> bool:
        if self._leave_at is None:
            return False
        return not (self.slots.runs or self.slots.handed_over) or time.monotonic() >= self._leave_at

    async def _control(self) -> None:
        """Claim streams and do the upkeep, over a new connection whenever one is lost."""
        await keep_connected(
            lambda: connect_control(self._settings, name="baton worker control"),
            self._serve,
            on_failure=self._on_disconnect,
            until=lambda: self._may_go,
            backoff=Backoff(cap_seconds=self._settings.lease_seconds / 4),
        )

    def _on_disconnect(self, error: Exception) -> None:
        logger.warning("The worker's connection is lost. Its streams continue in the meantime: %r", error)
        self._upkeep.disconnected()
        self._connected = False
        self.slots.share.withdraw()

    async def _serve(self, connection: Connection, backoff: Backoff) -> None:
        self._connected = True
        self.claiming.enter()
        self._upkeep.reconnected()
        self._heart.renew(self.lease.renew())
        while not self._may_go:
            self._wake.clear()
            await self._kill_switch.obey(connection)
            if beat := self.lease.take():
                await self._follow(connection, beat)
                backoff.reset()
            if self._upkeep.has_cancels:
                await self._upkeep.stop_cancelled(connection)
            if self._has_gap and self.lease.worker_id is not None:
                self._has_gap = False
                await self._upkeep.look(connection, self.lease.worker_id)
            await self._stopping.work(connection)
            await self._webhooks.work(connection)
            if self._leaving:
                await self._hand_over_continuing(connection)
            # A heartbeat during the claim moves the row, and then the claim finds nothing. But the heartbeat also
            # wakes this loop, which claims again.
            if self.lease.place is not None:
                if not self._leaving:
                    if await self._admission.work(connection):
                        self._wake.set()
                    await self.claiming.claim(connection)
                self.ready.set()
                self._host.ready.set()
            claim_at = time.monotonic() + CLAIM_PAUSE_SECONDS
            timer = asyncio.get_running_loop().call_later(self._settings.queue_poll_seconds, self._wake.set)
            await self._wake.wait()
            timer.cancel()
            await asyncio.sleep(max(0, claim_at - time.monotonic()))
        await self._hand_over(connection)

    def _report(self) -> Report:
        """Return what the next heartbeat says of this worker. The side thread calls this."""
        return Report(self.lease.worker_id, self._tokens.count, self.slots.silent())

    async def _follow(self, connection: Connection, beat: Beat) -> None:
        """Do what comes with a heartbeat, or register if there is no row for it."""
        if beat.place is None or beat.worker_id is None:
            await self._register(connection, beat)
        else:
            await self._upkeep.run(connection, beat.worker_id, beat.heartbeat.counters)

    async def _register(self, connection: Connection, beat: Beat) -> None:
        """Register. If this worker was declared dead, others have its streams, and it registers as a new worker."""
        if self.lease.worker_id is not None:
            logger.warning("This worker was declared dead, and its streams were given to others.")
            runs = list(self.slots.runs.values())
            for run in runs:
                run.outbox.lose(Lost.FENCED)
            # Streams that it claimed after the others had looked have no worker now: release them.
            await self._release(connection, runs, leaving=False)
        await self.lease.register(connection, beat)

    async def _hand_over_continuing(self, connection: Connection) -> None:
        """Stop the streams that another worker can continue, and give back those that have stopped."""
        for run in self.slots.runs.values():
            if run.claim.continues:
                run.hand_over()
        stopped = list(self.slots.handed_over.values())
        for run in stopped:
            await stream_queue.requeue(connection, run.claim.fence, stream_queue.LEFT)
            del self.slots.handed_over[run.claim.stream_id]
        if stopped:
            self._hints.send(hint.QUEUED)

    async def _hand_over(self, connection: Connection) -> None:
        """Give all streams back to the queue, so that another worker takes them at once, and sign off."""
        await self._settle_ends()
        runs = [*self.slots.runs.values(), *self.slots.handed_over.values()]
        for run in runs:
            run.abandon()
        await self._release(connection, runs, leaving=True)
        await self._settle_ends()
        if runs:
            self._hints.send(hint.QUEUED)
        for calls in (self._stopping, self._webhooks):
            await calls.leave(connection, CALLS_SECONDS)
        await self._hints.settle(SETTLE_SECONDS)
        await self.lease.give_up(connection)

    async def _settle_ends(self) -> None:
        """Leave time for end hooks that run, unless this worker is in a hurry."""
        if self._hooked_ends is not None and not self._hurries:
            await self._hooked_ends.settle(self._hooked_ends.timeout_seconds)

    async def _release(self, connection: Connection, runs: Sequence[Run], *, leaving: bool) -> None:
        for run in runs:
            claim = run.claim
            orphan = Orphan(
                claim.fence,
                claim.attempts,
                claim.on_worker_lost,
                generator=claim.generator,
                continues=claim.continues,
            )
            await release(
                connection, orphan, ends=self._ends, max_attempts=self._settings.max_attempts, leaving=leaving
            )

    def _on_new_history(self) -> None:
        """Compare the log before anything is written, and look at the whole queue again."""
        self.writer.doubt()
        self._hints.renew_keys()
        self.claiming.forget()
        self._upkeep.forget_queue()

    def _on_freed(self, claim: Claim) -> None:
        self._stopping.hurry(claim.generator)
        self._webhooks.hurry()
        self._admission.note_freed(claim.tenant)
        self._wake.set()

    def _on_queued(self, payload: str) -> None:
        if payload == notifications.HELD:
            self._admission.hurry()
        self._wake.set()

    def _on_cancel(self, payload: str) -> None:
        if self._upkeep.note_cancel(payload):
            self._wake.set()

    def _on_input(self, payload: str) -> None:
        self._upkeep.note_input(payload)

    def _on_kill(self, payload: str) -> None:
        self._kill_switch.note(payload)

    def _hints_owner(self) -> Owner:
        handlers: dict[str, Callable[[str], None]] = {
            QUEUE_CHANNEL: self._on_queued,
            CANCEL_CHANNEL: self._on_cancel,
            INPUT_CHANNEL: self._on_input,
        }
        if self._settings.demo:
            handlers[KILL_WORKER_CHANNEL] = self._on_kill
        return Owner(handlers, self._on_hint_state, self._on_gap)

    def _on_hint_state(self, state: HintState) -> None:
        self.metrics.note_hints(self.database, state.arrives)

    def _on_gap(self) -> None:
        """Look for everything that a hint may have been about."""
        self._has_gap = True
        self._admission.hurry()
        self._wake.set()
