"""A pod's part for one database: its pool, its listener, its relays, and the tasks that keep them up to date.

Databases know nothing of each other, and neither do shards. A pod has one for each database (see `shards`). Everything
here runs on the pod's event loop.

A shard is *open* once its database has answered and fits: its schema, its number, and notifications arrive. With one
database the pod does not start before. With several, a shard whose database is away opens when it comes back, and
requests for its streams get 503 until then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final, Self

from ..backoff import Backoff
from ..database_entries import DatabaseEntry
from ..db import code_revisions, database_identity, notifications, postgres, schema_revision
from ..db.database_identity import DatabaseIdentity
from ..db.fair_semaphore import FairSemaphore
from ..db.live_counts import LiveCounts
from ..db.named_errors import naming
from ..db.notifications import EVENTS_CHANNEL, INPUT_CHANNEL, KILL_CHANNEL
from ..db.pod_rows import Note
from ..db.postgres import Pool, translated
from ..errors import ConfigurationError, DatabaseUnreachable, OlderCodeRunning, Unavailable
from ..hints import opening
from ..hints.transport import HintState, Listening, Owner
from ..observability.metrics import PodMetrics
from ..settings import Settings
from .append_queue import AppendQueue
from .cluster_sampler import ClusterSampler
from .database_watch import DatabaseWatch
from .external_upkeep import ExternalUpkeep
from .input_hints import InputHints
from .notification_verifier import NotificationVerifier
from .relay_registry import RelayRegistry
from .settling import Settling
from .subscriber_limits import SubscriberLimits

logger = logging.getLogger(__name__)

# How long the database may be silent before the pod is no longer ready for new clients.
READY_SILENCE_SECONDS: Final = 15
# When to ask again whether older code runs: a roll-out takes minutes.
OLDER_CODE_SECONDS: Final = 30
# How long a pod that leaves waits until its last hints are sent.
SETTLE_SECONDS: Final = 1.0
# Between two tries to open a database that does not fit: somebody has to correct it.
UNFIT_SECONDS: Final = 60


class Shard:
    """One database of a pod. Made by `Shard.made`; `open` or `open_later` makes it usable."""

    def __init__(
        self,
        database: DatabaseEntry,
        settings: Settings,
        pool: Pool,
        *,
        metrics: PodMetrics,
        limits: SubscriberLimits,
        note: Callable[[Shard], Note],
    ) -> None:
        self.database = database
        self.settings = settings
        self.pool = pool
        self.metrics = metrics.of_database(database.name)
        self.verifier = NotificationVerifier(
            pool, check_seconds=settings.log_poll_seconds, on_new_history=self._on_new_history
        )
        self.relays = RelayRegistry(
            pool,
            metrics,
            self.metrics,
            limits,
            verifier=self.verifier,
            settling=Settling(pool, settings.failover_settle_seconds, self.verifier.renew),
            window_bytes=settings.relay_window_bytes,
            poll_seconds=settings.log_poll_seconds,
            with_events=settings.notify_payloads,
            listen=self._listen,
        )
        self.input_hints = InputHints()
        handlers = {EVENTS_CHANNEL: self.relays.hear, INPUT_CHANNEL: self.input_hints.hear}
        if settings.demo:
            handlers[KILL_CHANNEL] = self._on_kill
        self.hints = opening.opened(
            settings, Owner(handlers, self._on_hint_state, self._on_gap), name="baton pod", pool=pool
        )
        self.watch = DatabaseWatch(pool, self.metrics, metrics.pool_wait_seconds)
        self.live_counts = LiveCounts()
        self.sampler = ClusterSampler(
            pool, lambda: note(self), limits.changes(), interval_seconds=settings.pod_heartbeat_seconds
        )
        self.appends = AppendQueue(settings, self.hints, on_group=metrics.appends.note_group)
        self._external_upkeep = ExternalUpkeep(settings, pool, self.hints)
        self._made_at = time.time()
        self._has_current_code = False  # no older code can start any more
        self._opened = asyncio.Event()
        self._failed_at = 0.0

    @classmethod
    @contextlib.asynccontextmanager
    async def made(
        cls,
        database: DatabaseEntry,
        settings: Settings,
        metrics: PodMetrics,
        limits: SubscriberLimits,
        note: Callable[[Shard], Note],
    ) -> AsyncIterator[Self]:
        """Make a shard with its pool, which connects when it is used. `settings` are those of the database."""
        semaphore = FairSemaphore(settings.database_pool_size, settings.tenant_pool_share, metrics.reject_query)
        async with postgres.pool(
            settings.dsn,
            size=settings.database_pool_size,
            timeout_seconds=settings.database_timeout_seconds,
            name="baton pod",
            prepare=settings.prepare,
            semaphore=semaphore,
            connect_now=False,
        ) as pool:
            yield cls(database, settings, pool, metrics=metrics, limits=limits, note=note)

    @property
    def number(self) -> int:
        """The number of the database, which the ids of its streams have."""
        return self.database.number

    @property
    def is_open(self) -> bool:
        """Whether the database has answered since the start, and fits."""
        return self._opened.is_set()

    @property
    def ready(self) -> bool:
        """Whether the database answers."""
        # A pod that follows no stream polls nothing. The sampler asks in any case.
        silence_seconds = time.monotonic() - self._answered_at
        interval_seconds = max(self.settings.log_poll_seconds, self.settings.pod_heartbeat_seconds)
        return (
            self.is_open
            and self.hints.state is not HintState.CONNECTING
            and silence_seconds < interval_seconds + READY_SILENCE_SECONDS
        )

    @property
    def takes_streams(self) -> bool:
        """Whether a new stream should be created here rather than in another database."""
        return self.ready and not self.watch.disk_full and self._answered_at > self._failed_at

    def note_failure(self) -> None:
        """Prefer other databases for new streams until this one has answered again."""
        self._failed_at = time.monotonic()

    async def open(self, other: DatabaseIdentity | None = None) -> DatabaseIdentity:
        """Check that the database answers and fits; `other` is the identity of another one that is open.

        Raises:
            DatabaseUnreachable: it does not answer.
            ConfigurationError: its schema, its number or its way of delivering notifications does not fit, or it
                belongs to another installation.
        """
        with naming(self.database):
            await opening.check(self.settings)
            try:
                async with translated(self.pool):
                    await schema_revision.check_schema(self.pool)
                    identity = await database_identity.check_number(self.pool, self.database)
            except Unavailable as error:
                raise DatabaseUnreachable(f"The database does not answer. {error}") from error
        if other is not None:
            database_identity.check_installation({self.database.name: identity, "the others": other})
        self._opened.set()
        return identity

    async def open_later(self, other: Callable[[], DatabaseIdentity | None]) -> None:
        """Try until the database can be opened; `other` returns the identity of another one that is open."""
        backoff = Backoff(cap_seconds=5)
        while not self.is_open:
            try:
                await self.open(other())
                logger.info("The database %r answers.", self.database.name)
            except DatabaseUnreachable as error:
                logger.warning("The database %r is away: %s", self.database.name, error)
                await asyncio.sleep(backoff.next_seconds())
            except ConfigurationError as error:
                logger.critical("The database %r cannot be used: %s", self.database.name, error)
                await asyncio.sleep(UNFIT_SECONDS)

    def services(self) -> list[Coroutine[Any, Any, None]]:
        """Return what must run as long as the pod does. Each begins when the shard is open."""
        return [
            self._once_open(service)
            for service in (
                self.hints.run,
                self.verifier.run,
                self.relays.run,
                lambda: self.relays.note_watched(self.settings.watch_interval_seconds),
                self.watch.run,
                self.watch.watch_queue,
                self.sampler.run,
                self.appends.run,
                self._external_upkeep.run,
            )
        ]

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

    async def settle(self) -> None:
        """Wait until the last hints are sent, but not for long."""
        if self.is_open:
            await self.hints.settle(SETTLE_SECONDS)

    async def leave(self) -> None:
        """Delete the pod's row in the database."""
        if self.is_open:
            await self.sampler.leave()

    @property
    def _answered_at(self) -> float:
        return max(self.relays.answered_at, self.sampler.answered_at)

    async def _once_open(self, service: Callable[[], Coroutine[Any, Any, None]]) -> None:
        await self._opened.wait()
        await service()

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
