"""`baton chaos`: starts the processes, injects faults while the workload runs, and reports."""

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
from ..demo.cluster import Child, Cluster, Program, reserved_port
from ..errors import ConfigurationError, DemoError
from ..settings import Settings
from . import end_hook
from .complaint import Complaint
from .databases import Databases
from .display import Display
from .faults import Director, possible_kinds
from .generators import KINDS
from .memory import Memory
from .nats_server import NatsServer
from .tool_calls import FILE_VARIABLE, ToolCalls
from .webhooks import Receiver
from .workload import Violation, Workload

GROWTH_MEGABYTES: Final = 1.0  # a minute
RESTART_SECONDS: Final = 1.0
PROGRESS_SECONDS: Final = 0.5
MEMORY_SECONDS: Final = 5.0
_POOL_DISCONNECTED: Final = re.compile(r"^[^\[]*\[warning *\] .*\[asyncpg\.pool\]", re.DOTALL)
_RECORD: Final = re.compile(r"^(?=\d{4}-\d\d-\d\d )", re.MULTILINE)

# Shorter than the defaults, so that more happens in a minute.
_SETTINGS: Final = {
    "BATON_ALLOW_ANONYMOUS": "true",
    "BATON_GENERATORS": ",".join(f"{kind}=baton.chaos.generators:{kind}" for kind in KINDS),
    "BATON_ENABLED_GENERATORS": ",".join(KINDS),
    "BATON_DEFAULT_GENERATOR": KINDS[0],
    # However often its worker is lost, a stream that may run again must not fail.
    "BATON_MAX_ATTEMPTS": "100",
    "BATON_SSE_KEEP_ALIVE_SECONDS": "3",
    "BATON_RECONNECT_MILLISECONDS": "200",
    "BATON_WRITE_TIMEOUT_SECONDS": "5",
    "BATON_MAX_CONNECTION_AGE_SECONDS": "30",
    "BATON_DRAIN_SECONDS": "1",
    "BATON_WORKER_DRAIN_SECONDS": "4",
    "BATON_LISTEN_PROBE_SECONDS": "2",
    "BATON_DATABASE_TIMEOUT_SECONDS": "5",
    "BATON_RELAY_WINDOW_BYTES": "16384",
}


@dataclass(frozen=True, slots=True)
class Options:
    """What to run. `rate`: events a second of each stream. `faults`: None means all that are possible.

    `nats`: a NATS server of chaos' own carries the hints.
    """

    seconds: float = 60
    seed: int | None = None
    streams: int = 60
    viewers: int = 4
    pods: int = 3
    workers: int = 3
    rate: float = 40
    every_seconds: float = 2.0
    lease_seconds: float = 3
    faults: Sequence[str] | None = None
    databases: int = 1
    database_url: str | None = None
    nats: bool = False


def run(options: Options) -> int:
    """Run chaos, and return the exit status: 0 if there was no violation.

    Raises:
        ConfigurationError: the database or an option cannot be used.
    """
    dsn = _named_database(options)
    experiment = Experiment(options, dsn, Output())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(interruptible(experiment.run()))
        except Interrupted as interrupted:
            experiment.display.say(f"Stopped. The seed was {experiment.seed}.")
            return interrupted.exit_status


class Experiment:
    """One run of chaos."""

    def __init__(self, options: Options, dsn: str | None, console: Console) -> None:
        self.seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
        self.display = Display(console)
        self.violations: list[Violation] = []
        self.workload: Workload
        self.director: Director
        self._options = options
        self._dsn = dsn
        self._receiver: Receiver | None = None
        self._nats: NatsServer | None = None
        self._memory = Memory()
        self._failed_starts = 0
        self._started_at = time.monotonic()
        self.folder = Path()

    async def run(self) -> int:
        """Set up, run, judge, and clean up; return the exit status.

        Raises:
            ConfigurationError: there is no such fault, or the database cannot be used.
        """
        possible = possible_kinds(own_server=self._dsn is None, nats=self._options.nats)
        if unknown := set(self._options.faults or ()) - possible.keys():
            raise ConfigurationError(
                f"Unknown faults: {', '.join(sorted(unknown))}. Possible here: {', '.join(possible)}."
            )
        self.folder = Path(tempfile.mkdtemp(prefix="baton-chaos-"))
        passed = False
        try:
            with _logging_to(self.folder / "chaos.log"):
                async with self._cluster() as cluster:
                    await self.play(cluster)
                passed = self._judge()
        except DemoError as error:
            self.display.say(f"baton chaos: {error}", "bold red")
        finally:
            self._tidy_up(keep_logs=bool(self.violations))
        return 0 if passed else 1

    async def play(self, cluster: Cluster) -> None:
        """Inject faults while the workload runs, until all streams have ended."""
        self._started_at = time.monotonic()
        keeping = asyncio.create_task(self._keep(cluster))
        watching = asyncio.create_task(self._watch(cluster))
        try:
            with self.display:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.director.run(self._options.every_seconds, self._options.faults))
                    group.create_task(self.workload.run())
                    await asyncio.sleep(self._options.seconds)
                    self.director.stop()
                    self.workload.close()
        finally:
            for task in (keeping, watching):
                task.cancel()
            results = await asyncio.gather(keeping, watching, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        self._read_logs(cluster)

    @contextlib.asynccontextmanager
    async def _cluster(self) -> AsyncIterator[Cluster]:
        """Start the database, the proxies, the pods and the workers."""
        options = self._options
        self.display.say(f"baton chaos: {options.seconds:g} seconds, seed {self.seed}", "bold")
        async with contextlib.AsyncExitStack() as stack:
            databases = await stack.enter_async_context(self._databases())
            if self._dsn is None:
                self._receiver = await stack.enter_async_context(Receiver(Random(self.seed)))
            programs = [_through(program, databases) for program in self._programs(stack)]
            settings = {
                **_SETTINGS,
                "BATON_LEASE_SECONDS": str(options.lease_seconds),
                FILE_VARIABLE: str(self._tool_calls),
            }
            if options.nats:
                self._nats = await stack.enter_async_context(NatsServer.running())
                settings["BATON_HINTS_URL"] = self._nats.url
            cluster = await stack.enter_async_context(Cluster.open(self.folder, programs, settings))
            await self._wait_until_ready(cluster)
            self._assemble(cluster, databases)
            yield cluster

    def _databases(self) -> contextlib.AbstractAsyncContextManager[Databases]:
        """Return the databases, which are not there yet."""
        names = [*self._names("pod", self._options.pods), *self._names("worker", self._options.workers)]
        if self._dsn is not None:
            return Databases.of_users(self._dsn, names)
        count = self._options.databases
        servers = "an embedded Postgres" if count == 1 else f"{count} embedded Postgres"
        self.display.say(f"Starting {servers}, pods and workers ...")
        return Databases.of_own_servers(count, self.folder, names)

    def _assemble(self, cluster: Cluster, databases: Databases) -> None:
        options, random = self._options, Random(self.seed)
        pods = [program for program in cluster.programs.values() if program.is_pod]
        self.director = Director(
            cluster,
            databases,
            Random(random.random()),
            lease_seconds=options.lease_seconds,
            nats_server=self._nats,
            spared=("pod-1", "worker-1"),
            now=self._now,
        )
        self.workload = Workload(
            pods,
            databases,
            Random(random.random()),
            streams_at_once=options.streams,
            viewers=options.viewers,
            rate=options.rate,
            reach=self.director.reach,
            tool_calls=ToolCalls(self._tool_calls),
            violate=self._violate,
            receiver=self._receiver,
        )

    @property
    def _tool_calls(self) -> Path:
        return self.folder / "tool_calls"

    def _programs(self, stack: contextlib.ExitStack | contextlib.AsyncExitStack) -> list[Program]:
        """Return the pods and workers. On a database that is not chaos' own, they have no end hook and no webhooks."""
        of_pods: dict[str, str] = {}
        of_workers: dict[str, str] = {}
        if self._receiver is not None:
            of_pods = {"BATON_WEBHOOK_HOSTS": self._receiver.origin}
            of_workers = {
                **of_pods,
                "BATON_WEBHOOK_SECRETS": self._receiver.secret,
                "BATON_ON_END": end_hook.TARGET,
            }
        pods = [
            Program(name, stack.enter_context(reserved_port()), of_pods)
            for name in self._names("pod", self._options.pods)
        ]
        return pods + [Program(name, settings=of_workers) for name in self._names("worker", self._options.workers)]

    @staticmethod
    def _names(role: str, count: int) -> list[str]:
        return [f"{role}-{number}" for number in range(1, count + 1)]

    async def _wait_until_ready(self, cluster: Cluster) -> None:
        async with httpx2.AsyncClient(trust_env=False, timeout=5) as http:
            await cluster.wait_until_ready(http)

    async def _keep(self, cluster: Cluster) -> None:
        """Restart processes that ended, and report those that no fault ended."""
        while True:
            await asyncio.sleep(RESTART_SECONDS)
            for child in list(cluster.children.values()):
                if child.ended.done():
                    self._see_end(child)
                    await cluster.start(child.name)
                elif child.program.is_pod and not child.ready:
                    self.director.reach.note_away(child.name)

    def _see_end(self, child: Child) -> None:
        if child.pid in self.director.expected_ends:
            self.director.expected_ends.discard(child.pid)
        elif child.ready:
            detail = f"{child.name} has ended without a fault ({child.fate}):\n{child.last_lines()}"
            self._violate(Complaint("ended", 0, detail), "", child.name)
        else:
            # The database was down when it started. A platform would restart it as well.
            self._failed_starts += 1

    async def _watch(self, cluster: Cluster) -> None:
        """Display the progress, and sample the memory."""
        sample_at = 0.0
        while True:
            self.display.progress(self._now(), self._options.seconds, self.workload, self.director)
            if self._now() >= sample_at:
                sample_at = self._now() + MEMORY_SECONDS
                self._memory.sample([(child.name, child.pid) for child in cluster.children.values()], self._now())
            await asyncio.sleep(PROGRESS_SECONDS)

    def _read_logs(self, cluster: Cluster) -> None:
        """Report unexpected exceptions in the logs."""
        for name in cluster.programs:
            records = _RECORD.split((self.folder / f"{name}.log").read_text(errors="replace"))
            # asyncpg's pool logs a lost connection as a warning with a traceback.
            found = [item for item in records if "Traceback" in item and not _POOL_DISCONNECTED.search(item)]
            if found:
                detail = f"{len(found)} in the log of {name}, the first:\n{found[0][:4000]}"
                self._violate(Complaint("exception", 0, detail), "", name)

    def _violate(self, complaint: Complaint, stream: str, pod: str) -> None:
        found = Violation(complaint, stream, pod, self._now(), tuple(self.director.last))
        self.violations.append(found)
        text = _described(found)
        with (self.folder / "violations.log").open("a") as log:
            log.write(f"{text}\n")
        self.display.violation(found, text)

    def _judge(self) -> bool:
        now = self._now()
        for item in self._memory.survivors(now, least_seconds=0):
            if item.growth is not None and item.growth > GROWTH_MEGABYTES:
                detail = f"{item.name} grows by {item.growth:.2f} MB per minute: {item.per_minute}"
                self._violate(Complaint("memory", 0, detail), "", item.name)
        self.display.faults(self.director.counts)
        self.display.say(
            f"{self.director.counts.total()} faults; {self._failed_starts} starts failed without the database"
        )
        self.display.workload(self.workload, now)
        self.display.memory(self._memory.survivors(now, least_seconds=60))
        self.display.say("")
        self.display.say(f"The seed was {self.seed}. To repeat: {self._repeat_command()}")
        if self.violations:
            self.display.say(f"{len(self.violations)} violations.", "bold red")
        else:
            self.display.say("Every stream ended as it must. Nothing is missing, nothing was repeated.", "bold green")
        return not self.violations

    def _repeat_command(self) -> str:
        options, defaults = self._options, Options()
        words = [f"baton chaos --seconds {options.seconds:g} --seed {self.seed}"]
        names = ("streams", "viewers", "pods", "workers", "databases")
        words += [
            f"--{name} {getattr(options, name)}" for name in names if getattr(options, name) != getattr(defaults, name)
        ]
        words += ["--nats"] if options.nats else []
        words += [f'--faults "{",".join(options.faults)}"'] if options.faults else []
        return " ".join(words)

    def _tidy_up(self, *, keep_logs: bool) -> None:
        if not keep_logs:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for data in self.folder.glob("postgres*"):
            shutil.rmtree(data, ignore_errors=True)
        self.display.say(f"The logs of the processes are in {self.folder}")

    def _now(self) -> float:
        return time.monotonic() - self._started_at


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Log to a file inside the block, to keep the screen for the display."""
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
    if settings.database_url is not None and options.databases > 1:
        raise ConfigurationError(
            "Chaos brings its own servers for several databases. Leave out --databases, or --database-url and "
            "BATON_DATABASE_URL."
        )
    return None if settings.database_url is None else settings.dsn


def _through(program: Program, databases: Databases) -> Program:
    """Return the program, changed to reach the databases through its proxies."""
    return Program(program.name, program.port, {**program.settings, **databases.settings_of(program.name)})


def _described(found: Violation) -> str:
    complaint = found.complaint
    where = " ".join(filter(None, (found.stream, found.pod and f"on {found.pod}")))
    faults = "".join(f"\n        {fault}" for fault in found.last_faults)
    return (
        f"{found.at_seconds:.1f} s  {complaint.kind.upper()}  {where}  event {complaint.seq}: {complaint.detail}"
        f"\n    The last faults:{faults or ' none'}"
    )
