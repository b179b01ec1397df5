"""A pod: everything that one serving process holds, from its start to its shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Final, Self

from prometheus_client import generate_latest

from ..auth.gate import Authenticate, Gate
from ..db import pod_rows, worker_rows
from ..db.pod_rows import Note, PodState
from ..db.postgres import translated
from ..db.rate_buckets import Rate
from ..db.shared_work import RecentAnswers
from ..errors import ConfigurationError, Unavailable
from ..generators.registry import configured_names, what_is_missing
from ..observability.metrics import PodMetrics
from ..settings import Settings
from ..version import __version__
from .append_targets import AppendTargets
from .caller_rates import CallerRates
from .companion import Companion
from .request_bodies import RequestBodies
from .shard import Shard
from .shards import Shards
from .siblings import Siblings
from .stream_timeouts import OpenStreams
from .subscriber_limits import SubscriberLimits
from .tcp_limits import TcpLimits

logger = logging.getLogger(__name__)

# How long a console's response is reused: consoles ask more often than this, and all ask the same.
ANSWER_SECONDS: Final = 1


def _nothing() -> None:
    pass


class Pod:
    """What serves clients, and a shard for each database. Made by `Pod.open`."""

    def __init__(self, settings: Settings, metrics: PodMetrics) -> None:
        self.settings = settings
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
        self.streams = OpenStreams(
            sse_keep_alive_seconds=settings.sse_keep_alive_seconds,
            write_timeout_seconds=settings.write_timeout_seconds,
            max_age_seconds=settings.max_connection_age_seconds,
        )
        self.id = uuid.uuid4()
        self.read_rates = CallerRates(Rate(settings.reads_per_second, settings.reads_burst))
        self.append_rates = CallerRates(Rate(settings.appends_per_second, settings.appends_burst))
        self.append_targets = AppendTargets()
        self.recent_answers = RecentAnswers(ANSWER_SECONDS)
        self.companion: Companion | None = None
        self.siblings: Siblings | None = None
        self.draining = False
        self.broken = False
        self.before_joining: Callable[[], None] = _nothing  # called when a client is about to follow or to wait
        self.shards: Shards
        self.gate: Gate

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: Settings, *, authenticate: Authenticate | None = None) -> AsyncIterator[Self]:
        """Connect, check the databases, and run the pod's tasks: those of each database, the gate and the timeouts.

        `authenticate`: see `Gate`.

        Raises:
            ConfigurationError: no client could authenticate, no database can be reached, one does not fit, or no
                process offers the default generator.
        """
        for remark in settings.remarks:
            logger.warning(remark)
        pod = cls(settings, PodMetrics())
        async with contextlib.AsyncExitStack() as stack:
            pod.shards = Shards(
                [
                    await stack.enter_async_context(
                        Shard.made(item, settings.of(item), pod.metrics, pod.subscriber_limits, pod._note)
                    )
                    for item in settings.all_databases
                ]
            )
            await pod.shards.start()
            pod.gate = Gate(
                settings,
                pod.shards.open[0].pool,
                origin_allowed=settings.allowed_origins.__contains__,
                authenticate=authenticate,
            )
            await pod.gate.open()
            default = settings.default_generator
            if default and (sentence := await pod.missing_generator(default)):
                raise ConfigurationError(f"BATON_DEFAULT_GENERATOR: {sentence}")
            services = [pod.streams.run(), *pod.shards.services(), *pod.gate.tasks()]
            tasks = [asyncio.create_task(service) for service in services]
            for task in tasks:
                task.add_done_callback(pod.on_task_end)
            try:
                yield pod
            finally:
                # A client that loses its connection from now on has not left.
                pod.draining = pod.streams.draining = True
                for task in tasks:
                    task.remove_done_callback(pod.on_task_end)
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await pod.shards.leave()

    @property
    def ready(self) -> bool:
        """Whether new clients should be sent here."""
        return (
            not self.draining
            and not self.broken
            and not self.full
            and (self.companion is None or self.companion.ready)
            and self.shards.ready
        )

    @property
    def full(self) -> bool:
        """Whether it has, or had a moment ago, as many subscribers or connections as it accepts."""
        return self.subscriber_limits.full or self.tcp_limits.full

    def on_task_end(self, task: asyncio.Task[None]) -> None:
        """Mark the pod as broken if one of its own tasks has failed, which only a fault of this code can cause."""
        if task.cancelled() or task.exception() is not None:
            error = None if task.cancelled() else task.exception()
            logger.critical("A task of this pod has died. Restart the pod.", exc_info=error)
            self.broken = True

    async def missing_generator(self, name: str) -> str | None:
        """Return None if this pod or a worker has this generator, and otherwise a sentence that says what to do."""
        known = configured_names(self.settings)
        if name not in known:
            known |= await self.offered_generators()
        if name in known:
            return None
        if sentence := what_is_missing(self.settings, name):
            return sentence
        return (
            f"There is no generator called {name!r}. Known are: {', '.join(sorted(known))}. "
            "Add your own to BATON_GENERATORS, for pods and workers alike."
        )

    async def offered_generators(self) -> set[str]:
        """Return the generators of the workers of all databases.

        Raises:
            Unavailable: no database answers.
        """
        offered: set[str] = set()
        failure: Unavailable | None = None
        for shard in self.shards.open:
            try:
                async with translated(shard.pool):
                    offered |= await worker_rows.offered_generators(shard.pool)
            except Unavailable as error:
                failure = error
        if failure is not None and not offered:
            raise failure
        return offered

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
        for shard in self.shards:
            shard.relays.tap_all()

    @property
    def failed(self) -> bool:
        """Whether a part of the process has ended by itself."""
        return self.broken or (self.companion is not None and self.companion.failed)

    @property
    def is_alone(self) -> bool:
        """Whether the process has no other part, and its command no other process."""
        return self.companion is None and self.siblings is None

    async def render_metrics(self) -> bytes:
        """Return the metrics of the process in Prometheus' text format, or those of all processes of its command."""
        if self.siblings is not None:
            return await self.siblings.render_metrics()
        beside = b"" if self.companion is None else generate_latest(self.companion.metrics_registry)
        return self.metrics.render() + beside

    def _note(self, shard: Shard) -> Note:
        return Note(
            self.id,
            self.settings.pod_name,
            __version__,
            self._state(),
            shard.listener.state.value,
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
