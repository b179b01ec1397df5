"""The kinds of faults, and the director that injects them at random, several at once, and undoes them.

A fault picks a target that no other fault holds, strikes it, waits, and always undoes what it did. Faults of the server
itself (a restart, an outage, a slow disk, a full queue, a promotion), and forged notifications, which every client of
the server would receive, exist only if the server is chaos' own.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

import asyncpg

from ..db import database_identity, notifications
from ..db.postgres import CONNECTION_ERRORS, Connection, connect
from ..demo.cluster import Child, Cluster
from ..demo.embedded import EmbeddedPostgres
from ..errors import ConfigurationError
from .forger import Forger, NotifyMessenger
from .nats_server import NatsServer
from .postgres_pair import PostgresPair
from .proxy import Proxy
from .trouble import NEAR_SECONDS, Promotion, Trouble

LEAVE_SECONDS: Final = 12  # from SIGTERM to SIGKILL, as on a platform
CALM_EVERY_SECONDS: Final = 45
CALM_SECONDS: Final = 4
AT_ONCE: Final = 4
# After a promotion, until the workers have appended again what was lost.
HEALING_SECONDS: Final = 5
FILLER_CHANNEL: Final = "baton_chaos"

_FILLING: Final = [f"{number}{'x' * 7000}" for number in range(20)]

Kind = Callable[["Director"], Awaitable[None]]


class _NothingToStrike(Exception):
    """Other faults hold every possible target of this one."""


@dataclass(slots=True)
class Lines:
    """The two proxies between one process and Postgres."""

    queries: Proxy
    listen: Proxy


class Director:
    """Injects faults. `counts` counts them by kind; `last` holds the latest ones as text."""

    def __init__(
        self,
        cluster: Cluster,
        lines: dict[str, Lines],
        random: Random,
        *,
        lease_seconds: float,
        dsn: str,
        pair: PostgresPair | None,
        nats_server: NatsServer | None,
        spared: Sequence[str],
        now: Callable[[], float],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.last: deque[str] = deque(maxlen=8)
        self.trouble = Trouble()
        self.expected_ends: set[int] = set()  # pids that a fault ends
        self._cluster = cluster
        self._lines = lines
        self._random = random
        self._lease_seconds = lease_seconds
        self._dsn = dsn
        self._pair = pair
        self._nats = nats_server
        self._spared = spared
        self._now = now
        self._held: set[str] = set()
        self._stopping = asyncio.Event()
        self._kinds = possible_kinds(own_server=pair is not None, nats=nats_server is not None)

    def stop(self) -> None:
        """Inject no more faults. Those under way are undone as planned."""
        self._stopping.set()

    async def run(self, every_seconds: float, kinds: Sequence[str] | None = None) -> None:
        """Inject faults until stopped: `kinds` in their order, repeatedly, or otherwise from a shuffled deck."""
        calm_at = self._now() + CALM_EVERY_SECONDS
        deck: deque[str] = deque()
        running: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            while not self._stopping.is_set():
                await self._pause(self._random.uniform(0.5, 1.5) * every_seconds)
                if kinds is None and self._now() > calm_at:
                    await self._pause(CALM_SECONDS)
                    calm_at = self._now() + CALM_EVERY_SECONDS
                if self._stopping.is_set() or len(running) >= AT_ONCE:
                    continue
                if not deck:
                    deck.extend(kinds or self._shuffled())
                task = group.create_task(self._inject(deck.popleft(), deck))
                running.add(task)
                task.add_done_callback(running.discard)

    def _shuffled(self) -> list[str]:
        """Return all kinds, and those that cost a worker its streams more often."""
        kinds = [*self._kinds, *_OF_WORKERS, *_OF_WORKERS]
        return self._random.sample(kinds, len(kinds))

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _inject(self, kind: str, deck: deque[str]) -> None:
        try:
            await self._kinds[kind](self)
        except _NothingToStrike:
            deck.append(kind)
        except (*CONNECTION_ERRORS, asyncpg.PostgresError, ConfigurationError) as error:
            # The server is down, so this fault cannot be injected now.
            self.last.append(f"{self._now():.1f} s {kind} was not possible: {error!r:.80}")
            deck.append(kind)

    def _strikes(self, kind: str, target: str, seconds: float = 0) -> None:
        self.counts[kind] += 1
        self.last.append(f"{self._now():.1f} s {kind}, {target}" + (f", for {seconds:.1f} s" if seconds else ""))

    @contextlib.contextmanager
    def _hold(self, name: str) -> Iterator[None]:
        self._held.add(name)
        try:
            yield
        finally:
            self._held.discard(name)

    def _child(self, role: str, *, spare: bool) -> Child:
        """Pick a pod or a worker that is ready and that no other fault holds."""
        found = [
            child
            for child in self._cluster.children.values()
            if child.program.is_pod is (role == "pod")
            and child.name not in self._held
            and not child.ended.done()
            and child.ready
            and not (spare and child.name in self._spared)
        ]
        if not found:
            raise _NothingToStrike
        return self._random.choice(found)

    async def _end(self, role: str, number: signal.Signals) -> None:
        child = self._child(role, spare=True)
        with self._hold(child.name):
            self._strikes(f"{role} {number.name}", child.name)
            with self._troubles([child.name] if role == "worker" else []):
                self.expected_ends.add(child.pid)
                child.signal(number)
                await asyncio.wait([child.ended], timeout=LEAVE_SECONDS)
                child.signal(signal.SIGKILL)
                await child.ended

    async def _freeze(self, role: str, seconds: float) -> None:
        child = self._child(role, spare=False)
        with self._hold(child.name):
            self._strikes(f"{role} SIGSTOP", child.name, seconds)
            with self._troubles([child.name] if role == "worker" else []):
                child.signal(signal.SIGSTOP)
                try:
                    await asyncio.sleep(seconds)
                finally:
                    child.signal(signal.SIGCONT)

    async def _disturb(self, kind: str, disturb: Callable[[Proxy], None], seconds: float) -> None:
        """Disturb the proxy of one process, or of all."""
        names = list(self._lines) if self._random.random() < 0.25 else [self._random.choice(list(self._lines))]
        target = "all processes" if len(names) > 1 else names[0]
        line = kind.partition(" ")[0]
        with self._lines_of(names, line) as proxies:
            self._strikes(kind, target, seconds)
            with self._troubles(self._alone(names, line)):
                for proxy in proxies:
                    disturb(proxy)
                await asyncio.sleep(seconds)

    def _delay(self, proxy: Proxy) -> None:
        proxy.delay(self._random.uniform(0.01, 0.25))

    async def _lose_replies(self) -> None:
        """Hold the replies to statements, then cut: the worker cannot know whether a flush was committed."""
        name = self._random.choice(list(self._lines))
        seconds = self._random.uniform(0.1, 2)
        with self._lines_of([name], "queries") as proxies:
            self._strikes("replies lost", name, seconds)
            with self._troubles(self._alone([name], "queries")):
                for proxy in proxies:
                    proxy.hold_replies()
                await asyncio.sleep(seconds)
                for proxy in proxies:
                    proxy.cut()

    @contextlib.contextmanager
    def _lines_of(self, names: Sequence[str], line: str) -> Iterator[list[Proxy]]:
        keys = [f"{line} of {name}" for name in names]
        if self._held.intersection(keys):
            raise _NothingToStrike
        proxies: list[Proxy] = [getattr(self._lines[name], line) for name in names]
        self._held.update(keys)
        try:
            yield proxies
        finally:
            self._held.difference_update(keys)
            for proxy in proxies:
                proxy.resume()

    def _alone(self, names: Sequence[str], line: str) -> Sequence[str]:
        """Return the worker that alone cannot reach Postgres, so that the others may declare it dead."""
        alone = len(names) == 1 and not self._cluster.programs[names[0]].is_pod
        return names if alone and line == "queries" else []

    @contextlib.contextmanager
    def _troubles(self, workers: Sequence[str]) -> Iterator[None]:
        """Record that workers may lose their streams, from the block's beginning to its end."""
        for name in workers:
            self.trouble.note_worker(name)
        try:
            yield
        finally:
            for name in workers:
                self.trouble.note_worker(name)

    async def _terminate_backends(self) -> None:
        """Terminate the backends of one child. The proxies know their pids."""
        name = self._random.choice(list(self._lines))
        lines = self._lines[name]
        pids = sorted(lines.queries.backends | lines.listen.backends)
        if not pids:
            raise _NothingToStrike
        async with _session(self._dsn) as connection:
            await connection.execute("SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid", pids)
        self._strikes("backends terminated", f"{len(pids)} of {name}")

    async def _hold_snapshot(self) -> None:
        """Keep a snapshot open, as a dump does: until it ends, vacuum removes nothing from the queue's indexes."""
        seconds = self._random.uniform(2, 6)
        with self._hold_alone("snapshot"):
            async with _session(self._dsn) as connection:
                await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM baton.stream LIMIT 1")
                self._strikes("old snapshot", "all processes", seconds)
                await asyncio.sleep(seconds)

    async def _restart_postgres(self) -> None:
        with self._hold_server() as server:
            self._strikes("postgres restart", "immediate")
            await asyncio.to_thread(server.restart)

    async def _outage(self) -> None:
        seconds = 3 * self._lease_seconds
        with self._hold_server() as server:
            self._strikes("postgres outage", "immediate", seconds)
            await asyncio.to_thread(server.stop)
            try:
                await asyncio.sleep(seconds)
            finally:
                await asyncio.to_thread(server.start)

    async def _slow_disk(self) -> None:
        """Delay each commit. Without commit_siblings=0, only concurrent commits would be delayed."""
        seconds, delay = self._random.uniform(3, 6), self._random.randint(2_000, 100_000)
        with self._hold_server():
            async with _session(self._dsn) as connection:
                await _configure(connection, commit_delay=delay, commit_siblings=0)
                self._strikes("slow disk", f"{delay / 1000:.0f} ms per commit", seconds)
                try:
                    await asyncio.sleep(seconds)
                finally:
                    await _configure(connection, commit_delay=None, commit_siblings=None)

    async def _fill_queue(self) -> None:
        seconds = self._random.uniform(2, 5)
        with self._hold_server():
            async with full_notify_queue(self._dsn):
                self._strikes("notify queue full", "all processes", seconds)
                await asyncio.sleep(seconds)

    async def _forge(self) -> None:
        seconds = self._random.uniform(2, 5)
        async with _session(self._dsn) as connection:
            self._strikes("forged notifications", "all processes", seconds)
            await Forger(NotifyMessenger(connection), self._random).run(seconds)

    async def _forge_by_nats(self) -> None:
        from .nats_stranger import stranger  # only here is its package needed

        seconds = self._random.uniform(2, 5)
        with self._hold_nats() as server:
            async with _session(self._dsn) as connection:
                identity = await database_identity.read(connection)
            self._strikes("forged NATS messages", "all processes", seconds)
            async with stranger(server.url, identity) as messenger:
                await Forger(messenger, self._random).run(seconds)

    async def _kill_nats(self) -> None:
        seconds = self._random.uniform(0.1, 6)
        with self._hold_nats() as server:
            self._strikes("nats SIGKILL", "NATS", seconds)
            await server.kill()
            try:
                await asyncio.sleep(seconds)
            finally:
                await server.start()

    async def _freeze_nats(self) -> None:
        seconds = self._random.uniform(1, 8)
        with self._hold_nats() as server:
            self._strikes("nats SIGSTOP", "NATS", seconds)
            with server.frozen():
                await asyncio.sleep(seconds)

    async def _promote(self) -> None:
        """Promote a standby that lacks the primary's last commits. One worker is not disturbed, and must heal them."""
        with self._hold_worker():
            with self._hold_server():
                assert self._pair is not None
                promotion = None
                try:
                    await self._pair.build_standby()
                    promotion = self.trouble.note_detached({})
                    await self._pair.detach_standby()
                    promotion.running = await self._pair.running_on_standby()
                    await self._lose_commits(self._pair, promotion)
                finally:
                    await self._pair.drop_standby()
                    if promotion is not None and promotion.stopped_at is None:
                        self.trouble.forget(promotion)
            await self._pause(HEALING_SECONDS)

    async def _lose_commits(self, pair: PostgresPair, promotion: Promotion) -> None:
        seconds = self._random.uniform(0.1, 1.5)
        self._strikes("promotion", "without the last commits", seconds)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(pair.primary.stop)
        promotion.stopped_at = self.trouble.now()
        await asyncio.shield(pair.promote())
        promotion.promoted_at = self.trouble.now()

    @contextlib.contextmanager
    def _hold_worker(self) -> Iterator[None]:
        """Let no fault strike one of the workers that have been undisturbed for a while, if there is one."""
        found = [
            name
            for name, program in self._cluster.programs.items()
            if not program.is_pod
            and not self._held.intersection((name, f"queries of {name}"))
            and self.trouble.seconds_since(name) > NEAR_SECONDS
        ]
        keys = {name for first in found[:1] for name in (first, f"queries of {first}")}
        self._held.update(keys)
        try:
            yield
        finally:
            self._held.difference_update(keys)

    @contextlib.contextmanager
    def _hold_alone(self, name: str) -> Iterator[None]:
        if name in self._held:
            raise _NothingToStrike
        with self._hold(name):
            yield

    @contextlib.contextmanager
    def _hold_nats(self) -> Iterator[NatsServer]:
        assert self._nats is not None
        with self._hold_alone("nats"):
            yield self._nats

    @contextlib.contextmanager
    def _hold_server(self) -> Iterator[EmbeddedPostgres]:
        if self._pair is None or "server" in self._held:
            raise _NothingToStrike
        with self._hold("server"):
            yield self._pair.primary


def possible_kinds(*, own_server: bool, nats: bool = False) -> Mapping[str, Kind]:
    """Return the kinds of faults by name; with `own_server`, also those that need a server of chaos' own.

    With `nats`, a NATS server carries the hints: it is struck, and what only LISTEN and NOTIFY have is left out.
    """
    kinds = _ANYWHERE | (_ON_OWN_SERVER if own_server else {})
    if not nats:
        return kinds
    return {name: kind for name, kind in kinds.items() if not _IS_OF_NOTIFY.match(name)} | _ON_NATS


_ANYWHERE: Final[dict[str, Kind]] = {
    "pod SIGKILL": lambda director: director._end("pod", signal.SIGKILL),
    "pod SIGTERM": lambda director: director._end("pod", signal.SIGTERM),
    "pod SIGSTOP": lambda director: director._freeze("pod", director._random.uniform(1, 6)),
    "worker SIGKILL": lambda director: director._end("worker", signal.SIGKILL),
    "worker SIGTERM": lambda director: director._end("worker", signal.SIGTERM),
    "worker SIGSTOP": lambda director: director._freeze(
        "worker", director._lease_seconds + director._random.uniform(1, 3)
    ),
    "queries cut": lambda director: director._disturb("queries cut", Proxy.cut, 0),
    "queries stalled": lambda director: director._disturb(
        "queries stalled", Proxy.stall, director._random.uniform(0.5, 5)
    ),
    "queries delayed": lambda director: director._disturb(
        "queries delayed", director._delay, director._random.uniform(2, 5)
    ),
    "queries black-holed": lambda director: director._disturb(
        "queries black-holed", Proxy.blackhole, director._random.uniform(0.1, 4)
    ),
    "replies lost": Director._lose_replies,
    "listen cut": lambda director: director._disturb("listen cut", Proxy.cut, 0),
    "listen stalled": lambda director: director._disturb("listen stalled", Proxy.stall, director._random.uniform(1, 8)),
    "listen delayed": lambda director: director._disturb(
        "listen delayed", director._delay, director._random.uniform(2, 5)
    ),
    "listen black-holed": lambda director: director._disturb(
        "listen black-holed", Proxy.blackhole, director._random.uniform(1, 8)
    ),
    "backends terminated": Director._terminate_backends,
    "old snapshot": Director._hold_snapshot,
}
_ON_NATS: Final[dict[str, Kind]] = {
    "nats SIGKILL": Director._kill_nats,
    "nats SIGSTOP": Director._freeze_nats,
    "forged NATS messages": Director._forge_by_nats,
}
_IS_OF_NOTIFY: Final = re.compile("listen |notify queue|forged notifications")
_OF_WORKERS: Final = [kind for kind in _ANYWHERE if kind.startswith("worker ")]
_ON_OWN_SERVER: Final[dict[str, Kind]] = {
    "postgres restart": Director._restart_postgres,
    "postgres outage": Director._outage,
    "slow disk": Director._slow_disk,
    "notify queue full": Director._fill_queue,
    "forged notifications": Director._forge,
    "promotion": Director._promote,
}


@contextlib.asynccontextmanager
async def full_notify_queue(dsn: str) -> AsyncIterator[None]:
    """Fill the notification queue. A session that listens inside a transaction keeps the server from emptying it."""
    async with _session(dsn) as holding, _session(dsn) as filling:
        await holding.execute(f"LISTEN {FILLER_CHANNEL}")
        await holding.execute("BEGIN; SELECT 1")
        with contextlib.suppress(asyncpg.ProgramLimitExceededError):
            while True:
                await notifications.notify(filling, FILLER_CHANNEL, _FILLING)
        yield


@contextlib.asynccontextmanager
async def _session(dsn: str) -> AsyncIterator[Connection]:
    connection = await connect(dsn, name="chaos")
    try:
        yield connection
    finally:
        connection.terminate()


async def _configure(connection: Connection, **settings: int | None) -> None:
    for name, value in settings.items():
        await connection.execute(f"ALTER SYSTEM {'RESET ' + name if value is None else f'SET {name} = {value}'}")
    await connection.execute("SELECT pg_reload_conf()")
