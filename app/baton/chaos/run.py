"""`baton chaos`: sets the scene, lets faults and audience at it for a time, and pronounces."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import httpx2
import uvloop
from rich.console import Console

from ..commands.interruption import Interrupted, interruptible
from ..commands.terminal import Output
from ..db import postgres
from ..db.postgres import Pool, connect
from ..db.schema_revision import check_schema
from ..demo.cluster import Child, Cluster, Program, reserved_port
from ..demo.embedded import EmbeddedPostgres, embedded_server
from ..errors import ConfigurationError, DemoError
from ..schema.migrate import migrate
from ..settings import Settings
from .audience import Audience, Violation
from .faults import Director, Lines, possible_kinds
from .memory import Memory
from .proxy import Proxy
from .report import Report
from .servers import Servers
from .verdict import Complaint

GROWTH_MEGABYTES: Final = 1.0  # a minute
RESTART_SECONDS: Final = 1.0
TELL_SECONDS: Final = 0.5
MEMORY_SECONDS: Final = 5.0
_POOL_AWAY: Final = re.compile(r"^[^\[]*\[warning *\] .*\[asyncpg\.pool\]", re.DOTALL)
_RECORD: Final = re.compile(r"^(?=\d{4}-\d\d-\d\d )", re.MULTILINE)

# Shorter than by default, so that more happens in a minute.
_SETTINGS: Final = {
    "BATON_ALLOW_ANONYMOUS": "true",
    "BATON_GENERATORS": "chaos=baton.chaos.generator:generate",
    "BATON_OFFERED_GENERATORS": "chaos",
    "BATON_DEFAULT_GENERATOR": "chaos",
    "BATON_HEARTBEAT_SECONDS": "3",
    "BATON_RECONNECT_MILLISECONDS": "200",
    "BATON_WRITE_TIMEOUT_SECONDS": "5",
    "BATON_MAX_CONNECTION_SECONDS": "30",
    "BATON_DRAIN_SECONDS": "1",
    "BATON_LEAVE_SECONDS": "4",
    "BATON_LISTEN_PROBE_SECONDS": "2",
    "BATON_DATABASE_TIMEOUT_SECONDS": "5",
    "BATON_RELAY_WINDOW_BYTES": "16384",
}


@dataclass(frozen=True, slots=True)
class Options:
    """What to play. `rate` is of events a second and stream; `kinds` None means all that are possible."""

    seconds: float = 60
    seed: int | None = None
    streams: int = 60
    viewers: int = 4
    pods: int = 3
    workers: int = 3
    rate: float = 40
    every_seconds: float = 2.0
    lease_seconds: float = 3
    kinds: Sequence[str] | None = None
    database_url: str | None = None


def run(options: Options) -> int:
    """Play, and return the exit status: 0 when nothing was wrong.

    Raises:
        ConfigurationError: the database or an option is not as it must be.
    """
    dsn = _named_database(options)
    chaos = Chaos(options, dsn, Output())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(interruptible(chaos.run()))
        except Interrupted as interrupted:
            chaos.report.say(f"Stopped. The seed was {chaos.seed}.")
            return interrupted.exit_status


class Chaos:
    """One run of it."""

    def __init__(self, options: Options, dsn: str | None, console: Console) -> None:
        self.seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
        self.report = Report(console)
        self.violations: list[Violation] = []
        self.audience: Audience
        self.director: Director
        self._options = options
        self._dsn = dsn
        self._memory = Memory()
        self._failed_starts = 0
        self._started_at = time.monotonic()
        self.folder = Path()

    async def run(self) -> int:
        """Set up, play, judge, and tidy up; return the exit status.

        Raises:
            ConfigurationError: there is no such fault, or the database is not as it must be.
        """
        possible = possible_kinds(own_server=self._dsn is None)
        if unknown := set(self._options.kinds or ()) - possible.keys():
            raise ConfigurationError(
                f"There is no fault called {', '.join(sorted(unknown))} here. There are: {', '.join(possible)}."
            )
        self.folder = Path(tempfile.mkdtemp(prefix="baton-chaos-"))
        whole = False
        try:
            with _logging_to(self.folder / "chaos.log"):
                async with self._scene() as cluster:
                    await self.play(cluster)
                whole = self._pronounce()
        except DemoError as error:
            self.report.say(f"baton chaos: {error}", "bold red")
        finally:
            self._tidy_up(keep_logs=bool(self.violations))
        return 0 if whole else 1

    async def play(self, cluster: Cluster) -> None:
        """Let faults and audience at it, until all streams have ended."""
        self._started_at = time.monotonic()
        keeping = asyncio.create_task(self._keep(cluster))
        watching = asyncio.create_task(self._watch(cluster))
        try:
            with self.report:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.director.run(self._options.every_seconds, self._options.kinds))
                    group.create_task(self.audience.run())
                    await asyncio.sleep(self._options.seconds)
                    self.director.stop()
                    self.audience.close()
        finally:
            for task in (keeping, watching):
                task.cancel()
            results = await asyncio.gather(keeping, watching, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        self._read_logs(cluster)

    @contextlib.asynccontextmanager
    async def _scene(self) -> AsyncIterator[Cluster]:
        """Database, proxies, pods and workers."""
        options = self._options
        self.report.say(f"baton chaos: {options.seconds:g} seconds, seed {self.seed}", "bold")
        async with contextlib.AsyncExitStack() as stack:
            servers = None
            if self._dsn is None:
                self.report.say("Starting an embedded Postgres, pods and workers ...")
                servers = Servers(stack.enter_context(embedded_server(self.folder)), self.folder)
                stack.callback(servers.close)
                await asyncio.to_thread(prepare, servers.current)
            dsn = servers.current.dsn if servers is not None else self._dsn or ""
            await self._prepare_schema(dsn, own=servers is not None)
            programs = self._programs(stack)
            lines = {program.name: await _lines(stack, dsn) for program in programs}
            if servers is not None:
                # Nothing happens to this way, but that it leads to whichever server is the present one.
                own = await stack.enter_async_context(Proxy(dsn))
                servers.follow([own, *(proxy for line in lines.values() for proxy in (line.queries, line.listen))])
                dsn = own.dsn
            programs = [_through(program, lines[program.name]) for program in programs]
            settings = {**_SETTINGS, "BATON_LEASE_SECONDS": str(options.lease_seconds)}
            cluster = await stack.enter_async_context(Cluster.open(self.folder, programs, settings))
            await self._wait_until_ready(cluster)
            pool = await stack.enter_async_context(postgres.pool(dsn, size=4, timeout_seconds=10, name="chaos verdict"))
            self._cast(cluster, lines, pool, dsn, servers)
            yield cluster

    def _cast(self, cluster: Cluster, lines: dict[str, Lines], pool: Pool, dsn: str, servers: Servers | None) -> None:
        options, random = self._options, Random(self.seed)
        pods = [program for program in cluster.programs.values() if program.is_pod]
        self.director = Director(
            cluster,
            lines,
            Random(random.random()),
            lease_seconds=options.lease_seconds,
            dsn=dsn,
            servers=servers,
            spared=("pod-1", "worker-1"),
            now=self._now,
        )
        self.audience = Audience(
            pods,
            pool,
            Random(random.random()),
            streams_at_once=options.streams,
            viewers=options.viewers,
            rate=options.rate,
            erase=servers is None,
            worker_trouble=lambda: self.director.worker_trouble,
            rewinds=lambda: self.director.rewinds,
            violate=self._violate,
        )

    def _programs(self, stack: contextlib.ExitStack | contextlib.AsyncExitStack) -> list[Program]:
        pods = [
            Program(f"pod-{number}", stack.enter_context(reserved_port()))
            for number in range(1, self._options.pods + 1)
        ]
        return pods + [Program(f"worker-{number}") for number in range(1, self._options.workers + 1)]

    async def _prepare_schema(self, dsn: str, *, own: bool) -> None:
        if own:
            await migrate(dsn, days_ahead=1)
            return
        connection = await connect(dsn, name="chaos")
        try:
            await check_schema(connection)
        finally:
            await connection.close()

    async def _wait_until_ready(self, cluster: Cluster) -> None:
        async with httpx2.AsyncClient(trust_env=False, timeout=5) as http:
            await cluster.wait_until_ready(http)

    async def _keep(self, cluster: Cluster) -> None:
        """Start again what ended, and complain of what was not made to end."""
        while True:
            await asyncio.sleep(RESTART_SECONDS)
            for child in list(cluster.children.values()):
                if child.ended.done():
                    self._see_end(child)
                    await cluster.start(child.name)

    def _see_end(self, child: Child) -> None:
        if child.pid in self.director.expected_ends:
            self.director.expected_ends.discard(child.pid)
        elif child.ready:
            detail = f"{child.name} has ended by itself ({child.fate}):\n{child.last_lines()}"
            self._violate(Complaint("ended", 0, detail), "", child.name)
        else:
            # The database was away when it was started; a platform would start it again, too.
            self._failed_starts += 1

    async def _watch(self, cluster: Cluster) -> None:
        """Tell the progress, and sample the memory."""
        look_at = 0.0
        while True:
            self.report.progress(self._now(), self._options.seconds, self.audience, self.director)
            if self._now() >= look_at:
                look_at = self._now() + MEMORY_SECONDS
                self._memory.look([(child.name, child.pid) for child in cluster.children.values()], self._now())
            await asyncio.sleep(TELL_SECONDS)

    def _read_logs(self, cluster: Cluster) -> None:
        """Complain of exceptions that nobody expected."""
        for name in cluster.programs:
            records = _RECORD.split((self.folder / f"{name}.log").read_text(errors="replace"))
            # The pool of asyncpg tells with a traceback, as a warning, that it is not connected just now.
            worst = [item for item in records if "Traceback" in item and not _POOL_AWAY.search(item)]
            if worst:
                detail = f"{len(worst)} in the log of {name}, the first:\n{worst[0][:4000]}"
                self._violate(Complaint("exception", 0, detail), "", name)

    def _violate(self, complaint: Complaint, stream: str, pod: str) -> None:
        found = Violation(complaint, stream, pod, self._now(), tuple(self.director.last))
        self.violations.append(found)
        text = _told(found)
        with (self.folder / "violations.log").open("a") as log:
            log.write(f"{text}\n")
        self.report.violation(found, text)

    def _pronounce(self) -> bool:
        now = self._now()
        for item in self._memory.survivors(now, least_seconds=0):
            if item.growth is not None and item.growth > GROWTH_MEGABYTES:
                detail = f"{item.name} grows by {item.growth:.2f} MB a minute: {item.per_minute}"
                self._violate(Complaint("memory", 0, detail), "", item.name)
        self.report.faults(self.director.counts)
        self.report.say(f"{self.director.counts.total()} faults; {self._failed_starts} starts failed meanwhile")
        self.report.audience(self.audience, now)
        self.report.memory(self._memory.survivors(now, least_seconds=60))
        self.report.say("")
        self.report.say(f"The seed was {self.seed}. Again: {self._again()}")
        if self.violations:
            self.report.say(f"{len(self.violations)} things were wrong.", "bold red")
        else:
            self.report.say("Nothing is missing, nothing came twice, and everything ended.", "bold green")
        return not self.violations

    def _again(self) -> str:
        options, given = self._options, Options()
        words = [f"baton chaos --seconds {options.seconds:g} --seed {self.seed}"]
        names = ("streams", "viewers", "pods", "workers")
        words += [
            f"--{name} {getattr(options, name)}" for name in names if getattr(options, name) != getattr(given, name)
        ]
        return " ".join(words)

    def _tidy_up(self, *, keep_logs: bool) -> None:
        if not keep_logs:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for data in self.folder.glob("postgres*"):
            shutil.rmtree(data, ignore_errors=True)
        self.report.say(f"The logs of the processes are in {self.folder}")

    def _now(self) -> float:
        return time.monotonic() - self._started_at


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Have this process log to a file, which the screen is not for, and afterwards to where it did before."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    with contextlib.closing(logging.FileHandler(path)) as handler:
        handler.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
        root.handlers = [handler]
        root.setLevel(logging.INFO)
        try:
            yield
        finally:
            root.handlers = handlers
            root.setLevel(level)


def _named_database(options: Options) -> str | None:
    settings = Settings.load(database_url=options.database_url)
    return None if settings.database_url is None else settings.dsn


def prepare(server: EmbeddedPostgres) -> None:
    """Make the notify queue so small that it can be filled, and let more processes connect."""
    asyncio.run(_configure(server.dsn))
    server.restart()


async def _configure(dsn: str) -> None:
    connection = await connect(dsn, name="chaos")
    try:
        await connection.execute("ALTER SYSTEM SET max_notify_queue_pages = 64")
        await connection.execute("ALTER SYSTEM SET max_connections = 300")
    finally:
        await connection.close()


async def _lines(stack: contextlib.AsyncExitStack, dsn: str) -> Lines:
    return Lines(await stack.enter_async_context(Proxy(dsn)), await stack.enter_async_context(Proxy(dsn)))


def _through(program: Program, lines: Lines) -> Program:
    """The same program, whose ways to Postgres lead through its proxies."""
    ways = {"BATON_DATABASE_URL": lines.queries.dsn, "BATON_LISTEN_DATABASE_URL": lines.listen.dsn}
    return Program(program.name, program.port, {**program.settings, **ways})


def _told(found: Violation) -> str:
    complaint = found.complaint
    where = " ".join(filter(None, (found.stream, found.pod and f"on {found.pod}")))
    faults = "".join(f"\n        {fault}" for fault in found.last_faults)
    return (
        f"{found.at_seconds:.1f} s  {complaint.kind.upper()}  {where}  event {complaint.seq}: {complaint.detail}"
        f"\n    The last faults:{faults or ' none'}"
    )
