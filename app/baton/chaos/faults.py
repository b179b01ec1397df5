"""The kinds of faults, and the director that injects them at random, several at once, and undoes them.

A fault picks a target that no other fault holds, strikes it, waits, and always undoes what it did. Faults of the server
itself (a restart, an outage, a slow disk, a full queue, a promotion), and forged notifications, which every client of
the server would receive, exist only if the server is chaos' own.

Of several databases, a fault strikes one, and a fault of the network sometimes all. Each has a server of its own, so
two of them may be in trouble at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Final, TypeVar

import asyncpg

from ..db import database_identity, notifications
from ..db.postgres import CONNECTION_ERRORS, Connection, connect
from ..demo.cluster import Child, Cluster
from ..demo.embedded import EmbeddedPostgres
from ..errors import ConfigurationError
from .databases import Database, Databases
from .forger import Forger, NotifyMessenger
from .nats_server import NatsServer
from .postgres_pair import PostgresPair
from .proxy import Proxy
from .reach import Reach
from .trouble import NEAR_SECONDS, Promotion

LEAVE_SECONDS: Final = 12  # from SIGTERM to SIGKILL, as on a platform
CALM_EVERY_SECONDS: Final = 45
CALM_SECONDS: Final = 4
AT_ONCE: Final = 4
ALL_DATABASES: Final = 0.25  # of the faults of the network
# After a promotion, until the workers have appended again what was lost.
HEALING_SECONDS: Final = 5
FILLER_CHANNEL: Final = "baton_chaos"

_FILLING: Final = [f"{number}{'x' * 7000}" for number in range(20)]

Kind = Callable[["Director"], Awaitable[None]]
Item = TypeVar("Item")


class _NothingToStrike(Exception):
    """Other faults hold every possible target of this one."""


class Director:
    """Injects faults. `counts` counts them by kind; `last` holds the latest ones as text."""

    def __init__(
        self,
        cluster: Cluster,
        databases: Databases,
        random: Random,
        *,
        lease_seconds: float,
        nats_server: NatsServer | None,
        spared: Sequence[str],
        now: Callable[[], float],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.last: deque[str] = deque(maxlen=8)
        pods = [program.name for program in cluster.programs.values() if program.is_pod]
        self.reach = Reach(pods, [database.number for database in databases])
        self.expected_ends: set[int] = set()  # pids that a fault ends
        self._cluster = cluster
        self._databases = databases
        self._random = random
        self._lease_seconds = lease_seconds
        self._nats = nats_server
        self._spared = spared
        self._now = now
        self._held: set[str] = set()
        self._stopping = asyncio.Event()
        self._kinds = possible_kinds(own_server=databases.own_servers, nats=nats_server is not None)

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

    def _choose(self, found: Sequence[Item]) -> Item:
        """Pick one. With one database, runs of a seed draw the same as before there could be several."""
        return found[0] if len(found) == 1 else self._random.choice(found)

    def _one(self) -> Database:
        return self._choose(list(self._databases))

    def _one_or_all(self) -> list[Database]:
        found = list(self._databases)
        return found if len(found) > 1 and self._random.random() < ALL_DATABASES else [self._choose(found)]

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
            with self._troubles([child.name], list(self._databases)):
                self.expected_ends.add(child.pid)
                child.signal(number)
                await asyncio.wait([child.ended], timeout=LEAVE_SECONDS)
                child.signal(signal.SIGKILL)
                await child.ended

    async def _freeze(self, role: str, seconds: float) -> None:
        child = self._child(role, spare=False)
        with self._hold(child.name):
            self._strikes(f"{role} SIGSTOP", child.name, seconds)
            with self._troubles([child.name], list(self._databases)):
                child.signal(signal.SIGSTOP)
                try:
                    await asyncio.sleep(seconds)
                finally:
                    child.signal(signal.SIGCONT)

    async def _disturb(self, kind: str, disturb: Callable[[Proxy], None], seconds: float) -> None:
        """Disturb the proxy of one process, or of all, to one database, or to all."""
        every = list(self._cluster.programs)
        names = every if self._random.random() < 0.25 else [self._random.choice(every)]
        databases = self._one_or_all()
        target = "all processes" if len(names) > 1 else names[0]
        line = kind.partition(" ")[0]
        with self._lines_of(names, line, databases) as proxies:
            self._strikes(kind, f"{target}{_place(databases)}", seconds)
            with self._troubles(self._apart(names, line), databases):
                for proxy in proxies:
                    disturb(proxy)
                await asyncio.sleep(seconds)

    def _delay(self, proxy: Proxy) -> None:
        proxy.delay(self._random.uniform(0.01, 0.25))

    async def _lose_replies(self) -> None:
        """Hold the replies to statements, then cut: the worker cannot know whether a flush was committed."""
        name = self._random.choice(list(self._cluster.programs))
        databases = self._one_or_all()
        seconds = self._random.uniform(0.1, 2)
        with self._lines_of([name], "queries", databases) as proxies:
            self._strikes("replies lost", f"{name}{_place(databases)}", seconds)
            with self._troubles(self._apart([name], "queries"), databases):
                for proxy in proxies:
                    proxy.hold_replies()
                await asyncio.sleep(seconds)
                for proxy in proxies:
                    proxy.cut()

    @contextlib.contextmanager
    def _lines_of(self, names: Sequence[str], line: str, databases: Sequence[Database]) -> Iterator[list[Proxy]]:
        keys = [_key(line, name, database) for name in names for database in databases]
        if self._held.intersection(keys):
            raise _NothingToStrike
        proxies: list[Proxy] = [getattr(database.lines[name], line) for name in names for database in databases]
        self._held.update(keys)
        try:
            yield proxies
        finally:
            self._held.difference_update(keys)
            for proxy in proxies:
                proxy.resume()

    def _apart(self, names: Sequence[str], line: str) -> Sequence[str]:
        """Return the processes whose queries do not reach a database.

        All workers at once are none: only if one of them is alone may the others declare it dead.
        """
        if line != "queries":
            return []
        return names if len(names) == 1 else [name for name in names if self._cluster.programs[name].is_pod]

    @contextlib.contextmanager
    def _troubles(self, names: Sequence[str], databases: Sequence[Database]) -> Iterator[None]:
        """Record that workers may lose their streams in these databases, from the block's beginning to its end.

        Pods may not reach the databases inside the block.
        """
        workers = [name for name in names if not self._cluster.programs[name].is_pod]

        def note() -> None:
            for database in databases:
                for name in workers:
                    database.trouble.note_worker(name)

        note()
        try:
            with self.reach.cut(names, [database.number for database in databases]):
                yield
        finally:
            note()

    async def _terminate_backends(self) -> None:
        """Terminate the backends of one child. The proxies know their pids."""
        name = self._random.choice(list(self._cluster.programs))
        database = self._one()
        lines = database.lines[name]
        pids = sorted(lines.queries.backends | lines.listen.backends)
        if not pids:
            raise _NothingToStrike
        async with _session(database.dsn) as connection:
            with self.reach.cut([name], [database.number]):
                await connection.execute("SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid", pids)
        self._strikes("backends terminated", f"{len(pids)} of {name}{database.suffix}")

    async def _hold_snapshot(self) -> None:
        """Keep a snapshot open, as a dump does: until it ends, vacuum removes nothing from the queue's indexes."""
        seconds = self._random.uniform(2, 6)
        database = self._one()
        with self._hold_alone(f"snapshot{database.suffix}"):
            async with _session(database.dsn) as connection:
                await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM baton.stream LIMIT 1")
                self._strikes("old snapshot", f"all processes{database.suffix}", seconds)
                await asyncio.sleep(seconds)

    async def _restart_postgres(self) -> None:
        database = self._one()
        with self._hold_server(database) as server:
            self._strikes("postgres restart", f"immediate{database.suffix}")
            await asyncio.to_thread(server.restart)

    async def _outage(self) -> None:
        seconds = 3 * self._lease_seconds
        database = self._one()
        with self._hold_server(database) as server:
            self._strikes("postgres outage", f"immediate{database.suffix}", seconds)
            await asyncio.to_thread(server.stop)
            try:
                await asyncio.sleep(seconds)
            finally:
                await asyncio.to_thread(server.start)

    async def _slow_disk(self) -> None:
        """Delay each commit. Without commit_siblings=0, only concurrent commits would be delayed."""
        seconds, delay = self._random.uniform(3, 6), self._random.randint(2_000, 100_000)
        database = self._one()
        with self._hold_server(database):
            async with _session(database.dsn) as connection:
                await _configure(connection, commit_delay=delay, commit_siblings=0)
                self._strikes("slow disk", f"{delay / 1000:.0f} ms per commit{database.suffix}", seconds)
                try:
                    await asyncio.sleep(seconds)
                finally:
                    await _configure(connection, commit_delay=None, commit_siblings=None)

    async def _fill_queue(self) -> None:
        seconds = self._random.uniform(2, 5)
        database = self._one()
        with self._hold_server(database):
            async with full_notify_queue(database.dsn):
                self._strikes("notify queue full", f"all processes{database.suffix}", seconds)
                await asyncio.sleep(seconds)

    async def _forge(self) -> None:
        seconds = self._random.uniform(2, 5)
        database = self._one()
        async with _session(database.dsn) as connection:
            self._strikes("forged notifications", f"all processes{database.suffix}", seconds)
            await Forger(NotifyMessenger(connection), self._random).run(seconds)

    async def _forge_by_nats(self) -> None:
        from .nats_stranger import stranger  # only here is its package needed

        seconds = self._random.uniform(2, 5)
        with self._hold_nats() as server:
            async with _session(self._one().dsn) as connection:
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
        database = self._one()
        with self._hold_worker(database):
            with self._hold_server(database):
                assert database.pair is not None
                promotion = None
                try:
                    await database.pair.build_standby()
                    promotion = database.trouble.note_detached({})
                    await database.pair.detach_standby()
                    promotion.running = await database.pair.running_on_standby()
                    await self._lose_commits(database, database.pair, promotion)
                finally:
                    await database.pair.drop_standby()
                    if promotion is not None and promotion.stopped_at is None:
                        database.trouble.forget(promotion)
            await self._pause(HEALING_SECONDS)

    async def _lose_commits(self, database: Database, pair: PostgresPair, promotion: Promotion) -> None:
        seconds = self._random.uniform(0.1, 1.5)
        self._strikes("promotion", f"without the last commits{database.suffix}", seconds)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(pair.primary.stop)
        promotion.stopped_at = database.trouble.now()
        await asyncio.shield(pair.promote())
        promotion.promoted_at = database.trouble.now()

    @contextlib.contextmanager
    def _hold_worker(self, database: Database) -> Iterator[None]:
        """Let no fault strike one of the workers that have been undisturbed for a while, if there is one."""
        found = [
            name
            for name, program in self._cluster.programs.items()
            if not program.is_pod
            and not self._held.intersection((name, _key("queries", name, database)))
            and database.trouble.seconds_since(name) > NEAR_SECONDS
        ]
        keys = {name for first in found[:1] for name in (first, _key("queries", first, database))}
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
    def _hold_server(self, database: Database) -> Iterator[EmbeddedPostgres]:
        key = f"server{database.suffix}"
        if database.pair is None or key in self._held:
            raise _NothingToStrike
        with self._hold(key), self.reach.cut(self._cluster.programs, [database.number]):
            yield database.pair.primary


def _key(line: str, process: str, database: Database) -> str:
    return f"{line} of {process}{database.suffix}"


def _place(databases: Sequence[Database]) -> str:
    return databases[0].suffix if len(databases) == 1 else ", all databases"


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
