"""A pod: everything that one serving process holds, from its start to its shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Final, Self

import asyncpg

from ..auth.gate import Authenticate, Gate
from ..db import (
    code_revisions,
    disk_space,
    external_details,
    notifications,
    partitions,
    pod_rows,
    postgres,
    queue_lines,
    schema_revision,
    stream_lists,
    stream_queue,
    vacuum_horizon,
    worker_rows,
)
from ..db.fair_pool import FairPool
from ..db.fair_semaphore import FairSemaphore
from ..db.live_counts import LiveCounts
from ..db.notifications import EVENTS_CHANNEL, INPUT_CHANNEL, KILL_CHANNEL
from ..db.pod_rows import Note, PodState
from ..db.postgres import Connection, Pool, translated
from ..db.queue_lines import QueueLines
from ..db.queue_watermark import SWEEP_SECONDS, QueueWatermark
from ..db.rate_buckets import Rate
from ..db.shared_work import RecentAnswers
from ..db.stream_queue import QueueState
from ..errors import ConfigurationError, OlderCodeRunning, Unavailable
from ..generators.registry import configured_names, what_is_missing
from ..hints import opening
from ..hints.transport import HintState, Listening, Owner
from ..observability.metrics import PodMetrics
from ..settings import Settings
from ..version import __version__
from .append_queue import AppendQueue
from .append_targets import AppendTargets
from .caller_rates import CallerRates
from .cluster_sampler import ClusterSampler
from .companion import Companion
from .external_upkeep import ExternalUpkeep
from .input_hints import InputHints
from .notification_verifier import NotificationVerifier
from .relay_registry import RelayRegistry
from .request_bodies import RequestBodies
from .settling import Settling
from .stream_timeouts import OpenStreams
from .subscriber_limits import SubscriberLimits
from .tcp_limits import TcpLimits

logger = logging.getLogger(__name__)

# How long the database may be silent before the pod is no longer ready for new clients.
READY_SILENCE_SECONDS: Final = 15
LOOK_SECONDS: Final = 15
QUEUE_SECONDS: Final = 0.5
# When to ask again whether older code runs: a roll-out takes minutes.
OLDER_CODE_SECONDS: Final = 30
# How long a pod that leaves waits until its last hints are sent.
SETTLE_SECONDS: Final = 1.0
# How long a console's response is reused: consoles ask more often than this, and all ask the same.
ANSWER_SECONDS: Final = 1


def _nothing() -> None:
    pass


class Pod:
    """Pool, relays and hints, wired to each other. Made by `Pod.open`."""

    def __init__(
        self, settings: Settings, pool: Pool, metrics: PodMetrics, authenticate: Authenticate | None = None
    ) -> None:
        self.settings = settings
        self.pool = pool
        self.metrics = metrics
        self.subscriber_limits = SubscriberLimits(
            self.metrics,
            max_pod=settings.max_subscribers,
            max_tenant=settings.max_tenant_subscribers,
            max_stream=settings.max_stream_subscribers,
        )
        self.tcp_limits = TcpLimits(
            self.metrics,
            max_connections=settings.max_connections,
            header_timeout_seconds=settings.header_timeout_seconds,
            body_timeout_seconds=settings.body_timeout_seconds,
            http_keep_alive_seconds=settings.http_keep_alive_seconds,
            flush_seconds=settings.write_timeout_seconds,
        )
        metrics.read("full", lambda: self.full)
        self.bodies = RequestBodies(
            self.metrics, max_bytes=settings.max_total_body_bytes, max_body_bytes=settings.max_body_bytes
        )
        self.verifier = NotificationVerifier(
            pool, check_seconds=settings.log_poll_seconds, on_new_history=self._on_new_history
        )
        self.relays = RelayRegistry(
            pool,
            self.metrics,
            self.subscriber_limits,
            self.verifier,
            Settling(pool, settings.failover_settle_seconds, self.verifier.renew),
            window_bytes=settings.relay_window_bytes,
            poll_seconds=settings.log_poll_seconds,
            with_events=settings.notify_payloads,
            listen=self._listen,
        )
        self.input_hints = InputHints()
        handlers = {EVENTS_CHANNEL: self.relays.hear, INPUT_CHANNEL: self.input_hints.hear}
        if settings.demo:
            handlers[KILL_CHANNEL] = self._on_kill
        owner = Owner(handlers, self._on_hint_state, self._on_gap)
        self.hints = opening.opened(settings, owner, name="baton pod", pool=pool)
        self.streams = OpenStreams(
            sse_keep_alive_seconds=settings.sse_keep_alive_seconds,
            write_timeout_seconds=settings.write_timeout_seconds,
            max_age_seconds=settings.max_connection_age_seconds,
        )
        self.gate = Gate(
            settings, pool, origin_allowed=settings.allowed_origins.__contains__, authenticate=authenticate
        )
        self._snapshots = vacuum_horizon.HorizonWatch()
        self.live_counts = LiveCounts()
        self.queue = QueueWatermark(late_check_seconds=SWEEP_SECONDS)
        self.queue_lines = QueueLines()
        self.id = uuid.uuid4()
        self._made_at = time.time()
        self.sampler = ClusterSampler(
            pool, self._note, self.subscriber_limits.changed, interval_seconds=settings.pod_heartbeat_seconds
        )
        self.read_rates = CallerRates(Rate(settings.reads_per_second, settings.reads_burst))
        self.append_rates = CallerRates(Rate(settings.appends_per_second, settings.appends_burst))
        self.recent_answers = RecentAnswers(ANSWER_SECONDS)
        self.appends = AppendQueue(settings, self.hints, on_group=metrics.appends.note_group)
        self.append_targets = AppendTargets()
        self._has_current_code = False  # no older code can start any more
        self.companion: Companion | None = None
        self.draining = False
        self.broken = False
        self.before_joining: Callable[[], None] = _nothing  # called when a client is about to follow or to wait

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: Settings, *, authenticate: Authenticate | None = None) -> AsyncIterator[Self]:
        """Connect, check the schema, and run the pod's tasks: the hints, the polls, the timeouts and the sampler.

        `authenticate`: see `Gate`.

        Raises:
            ConfigurationError: no client could authenticate, the database cannot be reached, its schema does not fit,
                or no process offers the default generator.
        """
        for remark in settings.remarks:
            logger.warning(remark)
        metrics = PodMetrics()
        semaphore = FairSemaphore(settings.database_pool_size, settings.tenant_pool_share, metrics.reject_query)
        async with postgres.pool(
            settings.dsn,
            size=settings.database_pool_size,
            timeout_seconds=settings.database_timeout_seconds,
            name="baton pod",
            prepare=settings.prepare,
            semaphore=semaphore,
        ) as pool:
            await opening.check(settings)
            await schema_revision.check_schema(pool)
            pod = cls(settings, pool, metrics, authenticate)
            await pod.gate.open()
            default = settings.default_generator
            if default and (sentence := await pod.missing_generator(default)):
                raise ConfigurationError(f"BATON_DEFAULT_GENERATOR: {sentence}")
            tasks = [
                asyncio.create_task(pod.hints.run()),
                asyncio.create_task(pod.verifier.run()),
                asyncio.create_task(pod.relays.run()),
                asyncio.create_task(pod.relays.note_watched(settings.watch_interval_seconds)),
                asyncio.create_task(pod.streams.run()),
                asyncio.create_task(pod.watch_database()),
                asyncio.create_task(pod.watch_queue()),
                asyncio.create_task(pod.sampler.run()),
                asyncio.create_task(pod.appends.run()),
                asyncio.create_task(ExternalUpkeep(settings, pool, pod.hints).run()),
                *map(asyncio.create_task, pod.gate.tasks()),
            ]
            for task in tasks:
                task.add_done_callback(pod.on_task_death)
            try:
                yield pod
            finally:
                # A client that loses its connection from now on has not left.
                pod.draining = pod.streams.draining = True
                await pod.hints.settle(SETTLE_SECONDS)
                for task in tasks:
                    task.remove_done_callback(pod.on_task_death)
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await pod.sampler.leave()

    @property
    def ready(self) -> bool:
        """Whether new clients should be sent here."""
        # A pod that follows no stream polls nothing. The sampler asks in any case.
        silence_seconds = time.monotonic() - max(self.relays.answered_at, self.sampler.answered_at)
        interval_seconds = max(self.settings.log_poll_seconds, self.settings.pod_heartbeat_seconds)
        return (
            not self.draining
            and not self.broken
            and not self.full
            and (self.companion is None or self.companion.ready)
            and self.hints.state is not HintState.CONNECTING
            and silence_seconds < interval_seconds + READY_SILENCE_SECONDS
        )

    @property
    def full(self) -> bool:
        """Whether it has, or had a moment ago, as many subscribers or connections as it accepts."""
        return self.subscriber_limits.full or self.tcp_limits.full

    @property
    def disk_full(self) -> bool:
        """Whether the database's disk is full. Clients can read then, so the pod stays ready."""
        return isinstance(self.pool, FairPool) and self.pool.disk_full

    def on_task_death(self, task: asyncio.Task[None]) -> None:
        """Mark the pod as broken: one of its own tasks has ended, which only a fault of this code can cause."""
        logger.critical("A task of this pod has died. Restart the pod.", exc_info=task.exception())
        self.broken = True

    async def missing_generator(self, name: str) -> str | None:
        """Return None if this pod or a worker has this generator, and otherwise a sentence that says what to do."""
        known = configured_names(self.settings)
        if name not in known:
            known |= await worker_rows.offered_generators(self.pool)
        if name in known:
            return None
        if sentence := what_is_missing(self.settings, name):
            return sentence
        return (
            f"There is no generator called {name!r}. Known are: {', '.join(sorted(known))}. "
            "Add your own to BATON_GENERATORS, for pods and workers alike."
        )

    async def require_current_code(self) -> None:
        """Refuse to create a stream of a kind that older code does not know, while such code may run.

        Raises:
            OlderCodeRunning: a pod or a worker of an older release runs, or has just stopped.
        """
        if not self._has_current_code:
            self._has_current_code = await code_revisions.exclude_older(self.pool)
        if not self._has_current_code:
            older = ", ".join(await code_revisions.older_processes(self.pool)) or "one that has just stopped"
            raise OlderCodeRunning(
                "The service is being updated, and cannot create such a stream yet. Try again in a few minutes.",
                OLDER_CODE_SECONDS,
                operator=f"processes of an older release run, which do not know such streams: {older}",
            )

    async def drain(self, seconds: float | None = None) -> None:
        """Send the clients away to other pods, spread over this time, by default `drain_seconds`.

        A companion leaves first. While it has more time than this, clients stay and see what it still writes.
        """
        patient = seconds is None or seconds >= self.settings.drain_seconds
        seconds = self.settings.drain_seconds if seconds is None else seconds
        if self.companion is not None:
            self.companion.leave()
            if patient:
                await self.companion.wait(max(0.0, self.settings.worker_drain_seconds - seconds))
        self.draining = True
        await self.streams.drain(seconds)
        self.relays.tap_all()

    @property
    def failed(self) -> bool:
        """Whether a part of the process has ended by itself."""
        return self.broken or (self.companion is not None and self.companion.failed)

    def render_metrics(self) -> bytes:
        """Return the metrics of the process in Prometheus' text format."""
        return self.metrics.render() + (b"" if self.companion is None else self.companion.render_metrics())

    async def watch_database(self) -> None:
        """Measure at intervals what an operator should know, and log problems while there is time to act."""
        while True:
            try:
                reach = await self._measure()
            except (Unavailable, asyncpg.PostgresError) as error:
                logger.warning("The pod cannot measure the database: %r", error)
            else:
                if reach.left_seconds < partitions.LEAST_SECONDS:
                    logger.error(
                        "The log's partitions end in %.1f h; after that nothing can be written. Run `baton maintain`. "
                        "Workers create partitions too: their log says why they cannot.",
                        reach.left_seconds / 3600,
                    )
            await asyncio.sleep(LOOK_SECONDS)

    async def watch_queue(self) -> None:
        """Keep the queue's watermarks up to date, so that reads of it stay short even if vacuum removes nothing."""
        while True:
            try:
                async with translated(self.pool), self.pool.acquire() as connection:
                    await self.queue.update(lambda since: queue_lines.first(connection, since))
                    await self.queue_lines.update(connection)
            except (Unavailable, asyncpg.PostgresError):
                self.queue.forget()
                self.queue_lines.forget()
            await asyncio.sleep(QUEUE_SECONDS)

    async def _measure(self) -> partitions.Reach:
        """Measure the partitions' reach, the queues, the oldest snapshot, and the wait for a pooled connection."""
        metrics = self.metrics
        metrics.pool_connections, metrics.pool_idle = self.pool.get_size(), self.pool.get_idle_size()
        asked_at = time.monotonic()
        async with translated(self.pool), self.pool.acquire() as connection:
            metrics.pool_wait_seconds.observe(time.monotonic() - asked_at)
            reach = await partitions.reach(connection)
            metrics.notify_queue_ratio = await notifications.queue_usage(connection)
            metrics.queue = (await self.queue_state(connection)).by_generator
            metrics.open_streams = await external_details.count_open(connection)
            metrics.waiting = await stream_lists.count_waiting(connection)
            metrics.oldest_snapshot_seconds = await self._snapshots.check(connection)
            await self._check_disk(connection)
        metrics.partitions_end = reach.end
        return reach

    async def _check_disk(self, connection: Connection) -> None:
        """Note whether the disk is full. This also covers a pod that writes nothing, and a disk that has room again."""
        full = not await disk_space.has_room(connection)
        if full:
            logger.error("The database's disk is full. Streams can be read, but nothing can be written.")
        if isinstance(self.pool, FairPool):
            self.pool.disk_full = full

    async def queue_state(self, connection: Connection) -> QueueState:
        """Return how many streams wait for a worker, and for how many seconds the first one has waited."""
        if self.queue.due:
            await self.queue.update(lambda since: queue_lines.first(connection, since))
        return await stream_queue.state(connection, self.queue.since)

    def _note(self) -> Note:
        return Note(
            self.id,
            self.settings.pod_name,
            __version__,
            self._state(),
            self.hints.state.value,
            self.subscriber_limits.subscribers,
            self.tcp_limits.connections,
            self.metrics.delivery_seconds.counts,
            self.subscriber_limits.newest(pod_rows.MOST_WATCHED),
        )

    def _state(self) -> PodState:
        if self.draining:
            return "draining"
        if self.full:
            return "full"
        return "ready" if self.ready else "not ready"

    def _on_kill(self, payload: str) -> None:
        """In a demo: kill this process, as if its machine were lost, if the notification names this pod."""
        is_meant = notifications.kills(payload, self.settings.pod_name, self._made_at)
        if is_meant and self.verifier.verifies(KILL_CHANNEL, payload):
            os.kill(os.getpid(), signal.SIGKILL)

    def _on_new_history(self) -> None:
        self.relays.distrust_all()
        # The counts, and the transaction ids by which they are compared, may have gone back too.
        self.live_counts = LiveCounts()
        self.appends.distrust()
        self.hints.renew_keys()

    def _listen(self, stream: str) -> Listening:
        return self.hints.listen(stream)

    def _on_hint_state(self, state: HintState) -> None:
        self.metrics.listening = state.arrives
        self.metrics.listener_disconnects += state is HintState.DEGRADED
        self.verifier.forget()

    def _on_gap(self) -> None:
        self.relays.catch_up_all()
        self.input_hints.give_all()
