"""`baton demo`: kills the pod that serves an answer, then the worker that writes it, and shows that it arrives whole.

One process is the client and owns the rest: an embedded Postgres, two pods on one port, two workers. It always ends
them and removes their files. It keeps the logs only if something went wrong, and then prints their folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import orjson
from rich.console import Console

from ..commands.interruption import Interrupted, interruptible
from ..commands.terminal import Flow, Output
from ..errors import BatonError, DemoError
from ..generators.replay import ReplayGenerator
from ..schema.migrate import migrate
from ..settings import Settings
from .cluster import Cluster, Program, reserved_port
from .verdict import Verdict
from .viewing import Viewing

QUESTION: Final = "Why should an answer outlive its machine?"
ANSWER_SECONDS: Final = 60
REQUEST_SECONDS: Final = 10
# Nobody waits for the default of 6 s here. A database of the user keeps the user's lease, by which the demo's workers
# judge others.
LEASE_SECONDS: Final = 2
HEARTBEAT_SECONDS: Final = 0.25


def run(*, serve: bool, port: int | None) -> int:
    """Run the demo, or with `serve` keep its processes up; return the exit status.

    Raises:
        ConfigurationError: a setting, the port or the database cannot be used.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal or a file that cannot encode a character of the answer must not end the demo.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    settings = Settings.load()
    with asyncio.Runner() as runner:
        return runner.run(_until_signalled(Scenario(settings, port), serve=serve))


async def _until_signalled(scenario: Scenario, *, serve: bool) -> int:
    try:
        return await interruptible(scenario.run(serve=serve))
    except Interrupted as interrupted:
        scenario.flow.line("Stopped.")
        return 0 if serve and interrupted.numbers == [signal.SIGINT] else interrupted.exit_status


class Scenario:
    """Starts the processes, follows the answer as their client, and shows both."""

    def __init__(self, settings: Settings, port: int | None) -> None:
        self._settings = settings
        self._port = port
        self._serves = False
        self._console = Output()
        self.flow = Flow(self._console)
        self._lease_seconds = LEASE_SECONDS if settings.database_url is None else settings.lease_seconds

    async def run(self, *, serve: bool) -> int:
        """Start everything, run the scenario, and clean up; return the exit status."""
        self._serves = serve
        folder = Path(tempfile.mkdtemp(prefix="baton-demo-"))
        failed = False
        try:
            async with self._cluster(folder) as (cluster, http):
                outcome = self._stay_up(cluster) if serve else cluster.guard(self._kill_and_resume(cluster, http))
                failed = not await outcome
        except BatonError as error:
            failed = True
            self.flow.end_line()
            if not isinstance(error, DemoError):
                raise
            Console(stderr=True, highlight=False, soft_wrap=True).print(f"baton demo: {error}", markup=False)
        finally:
            self._clean_up(folder, keep_logs=failed)
        return 1 if failed else 0

    @contextlib.asynccontextmanager
    async def _cluster(self, folder: Path) -> AsyncIterator[tuple[Cluster, httpx2.AsyncClient]]:
        """Start the database, pods, workers, and a client that opens a new connection for each request."""
        self.flow.line("baton demo: one answer, and kill -9 of its pod and of its worker in the middle", "bold")
        self.flow.line()
        limits = httpx2.Limits(max_keepalive_connections=0)
        async with contextlib.AsyncExitStack() as stack:
            port = stack.enter_context(reserved_port(self._port or 0))
            environment = self._database(stack, folder)
            with self._step("Updating the schema"):
                await migrate(environment["BATON_DATABASE_URL"], days_ahead=self._settings.partition_days_ahead)
            http = httpx2.AsyncClient(trust_env=False, limits=limits, timeout=REQUEST_SECONDS)
            await stack.enter_async_context(http)
            with self._step("Starting two pods on one port, and two workers"):
                cluster = await stack.enter_async_context(Cluster.open(folder, _programs(port), environment))
                await cluster.wait_until_ready(http)
            self._introduce(cluster)
            yield cluster, http

    def _database(self, stack: contextlib.AsyncExitStack, folder: Path) -> dict[str, str]:
        """Start a Postgres, or use BATON_DATABASE_URL; return the children's settings."""
        own = self._settings
        environment = {
            "BATON_ALLOW_ANONYMOUS": "true",
            "BATON_REPLAY_SPEED": str(own.replay_speed),
            "BATON_PATH_PREFIX": "",
            "BATON_DEMO": "true",
        }
        if own.database_url is None:
            # Not needed with another database, and perhaps not installed.
            from .embedded import embedded_postgres

            with self._step("Starting an embedded Postgres"):
                return environment | {
                    "BATON_DATABASE_URL": stack.enter_context(embedded_postgres(folder)),
                    "BATON_LEASE_SECONDS": str(LEASE_SECONDS),
                    "BATON_WORKER_HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS),
                }
        parts = urlsplit(own.dsn)
        self.flow.line(f"Using the database of BATON_DATABASE_URL: {parts.path[1:]} on {parts.hostname or 'localhost'}")
        return environment | {
            "BATON_DATABASE_URL": own.dsn,
            "BATON_LISTEN_DATABASE_URL": own.listen_dsn,
            "BATON_LEASE_SECONDS": str(own.lease_seconds),
            "BATON_WORKER_HEARTBEAT_SECONDS": str(own.worker_heartbeat_seconds),
        }

    def _introduce(self, cluster: Cluster) -> None:
        for child in cluster.children.values():
            line = f"  {child.name:<8} pid {child.pid:<8}"
            self.flow.line(f"{line} {cluster.address}" if child in cluster.pods else line.rstrip(), "dim")
        self.flow.line()

    async def _kill_and_resume(self, cluster: Cluster, http: httpx2.AsyncClient) -> bool:
        """Create a stream, follow it, kill its pod and its worker; return whether the answer arrived whole."""
        asked_at_seconds = monotonic()
        created = await _create(cluster, http)
        self.flow.line(f"POST /v1/streams: {QUESTION}", "bold")
        self.flow.line(f"GET {created['events_url']}", "bold")
        viewing = Viewing(cluster, http, self.flow, lease_seconds=self._lease_seconds)
        try:
            async with asyncio.timeout(ANSWER_SECONDS / min(1, self._settings.replay_speed) + self._lease_seconds):
                await viewing.run(created)
        except TimeoutError:
            raise DemoError("The answer did not end in time.") from None
        expected = ReplayGenerator(self._settings).choose(QUESTION).text
        verdict = Verdict.of(viewing.seen, asked_at_seconds=asked_at_seconds, expected_text=expected)
        return self._report(verdict, " -> ".join(viewing.writers))

    def _report(self, verdict: Verdict, writers: str) -> bool:
        self.flow.line()
        self.flow.line("What the client received", "bold")
        for label, value in _rows(verdict, writers):
            self.flow.line(f"  {label:<12} {value}")
        self.flow.line()
        complaints = verdict.complaints()
        for complaint in complaints:
            self.flow.line(complaint, "bold red")
        if not complaints:
            self.flow.line(
                "The answer outlived its pod and its worker: 0 tokens lost, 0 repeated, no reset.", "bold green"
            )
        return not complaints

    async def _stay_up(self, cluster: Cluster) -> bool:
        """Print what to try, and restart processes that end, until Ctrl-C."""
        for line in _instructions(cluster):
            # Not wrapped, so that commands can be copied.
            self._console.print(line, markup=False, soft_wrap=True)
        while True:
            child = await cluster.next_end()
            self.flow.line(f"{child.name} (pid {child.pid}) ended: {child.fate}.", "yellow")
            restarted = await cluster.restart(child)
            self.flow.line(f"{restarted.name} restarted (pid {restarted.pid}).", "dim")

    @contextlib.contextmanager
    def _step(self, what: str) -> Iterator[None]:
        """Print what is being done, and at the end how long it took."""
        started_at = monotonic()
        self.flow.write(f"{what} ... ")
        self.flow.flush()
        yield
        self.flow.write(f"{monotonic() - started_at:.1f} s\n")

    def _clean_up(self, folder: Path, *, keep_logs: bool) -> None:
        if not keep_logs or not list(folder.glob("*.log")):
            shutil.rmtree(folder, ignore_errors=True)
            return
        shutil.rmtree(folder / "postgres", ignore_errors=True)
        self.flow.line(f"The logs of the processes are in {folder}")


def _programs(port: int) -> list[Program]:
    return [Program("pod-a", port), Program("pod-b", port), Program("worker-a"), Program("worker-b")]


async def _create(cluster: Cluster, http: httpx2.AsyncClient) -> dict[str, Any]:
    body = {"generator": "replay", "input": QUESTION, "metadata": {"made_by": "baton demo"}}
    try:
        reply = await http.post(f"{cluster.address}/v1/streams", json=body)
    except httpx2.TransportError as error:
        raise DemoError(f"The stream could not be created: {error}") from error
    if not reply.is_success:
        raise DemoError(f"The stream could not be created: {reply.status_code} {reply.text}")
    created: dict[str, Any] = orjson.loads(reply.content)
    return created


def _rows(verdict: Verdict, writers: str) -> Iterator[tuple[str, str]]:
    first, duration = verdict.time_to_first_token_seconds, verdict.duration_seconds
    yield "events", f"{verdict.received}, numbered 1 to {verdict.last_seq}"
    yield "missing", str(len(verdict.missing))
    yield "repeated", str(len(verdict.repeated))
    for resumed in verdict.resumptions:
        pods = f"{resumed.from_pod} -> {resumed.to_pod}"
        yield "resumed", f"after event {resumed.seq}, {pods}, {resumed.pause_seconds:.2f} s later"
    for item in verdict.continuations:
        yield "continued", f"after event {item.seq}, {writers}, {item.pause_seconds:.2f} s later"
    yield "resets", str(verdict.resets)
    yield "first token", "none" if first is None else f"after {first:.2f} s"
    ends = ", ".join(f"{status}, event {seq}" for seq, status in verdict.ends) or "none"
    yield "end", ends if duration is None else f"{ends}, after {duration:.1f} s"


def _instructions(cluster: Cluster) -> list[str]:
    address = cluster.address
    kills = "\n".join(f"      kill -9 {child.pid}    # {child.name}" for child in cluster.children.values())
    body = orjson.dumps({"input": QUESTION}).decode()
    return f"""\
In a browser:

      {address}/demo       ask, and kill the pod or the worker of the answer
      {address}/console    pods, workers, streams, and the last ten minutes

By hand, in another terminal:

  1.  Create a stream, and keep its address:
      URL={address}$(curl -s {address}/v1/streams -d '{body}' | grep -o '/v1[^"]*/events')
  2.  Follow it; the header x-baton-pod names the pod that serves it:
      curl -Ni "$URL"
  3.  Kill that pod in the middle of the answer. Kill a worker, and the other one continues its answers:
{kills}
  4.  Continue after the last id you saw, on the other pod:
      curl -Ni -H 'Last-Event-ID: 200' "$URL"

Ctrl-C ends it.
""".splitlines()
