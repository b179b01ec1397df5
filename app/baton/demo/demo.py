"""`baton demo`: kills the pod that serves an answer, in mid-answer, and shows that the answer arrives whole.

One process plays the client and owns the rest: an embedded Postgres, two pods on one port, a worker. Whatever happens,
it ends them and removes their files; only the logs stay, and are named, when something went wrong.
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

from ..client import Connected, Disconnected, Follower, Sighting
from ..commands.interruption import Interrupted, interruptible
from ..commands.terminal import AnswerPrinter, Flow, Output
from ..errors import BatonError, DemoError
from ..schema.migrate import migrate
from ..settings import Settings
from .cluster import Child, Cluster, Program, reserved_port
from .verdict import Verdict

QUESTION: Final = "Why should an answer outlive its machine?"
KILL_AFTER_TEXTS: Final = 110
ANSWER_SECONDS: Final = 60
REQUEST_SECONDS: Final = 10


def run(*, serve: bool, port: int | None) -> int:
    """Run the demo, or with `serve` keep its processes up; return the exit status.

    Raises:
        ConfigurationError: a setting, the port or the database is not as it must be.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal or a file that cannot hold a character of the answer shall not end the demo.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    settings = Settings.load()
    with asyncio.Runner() as runner:
        return runner.run(_until_signalled(Demo(settings, port), serve=serve))


async def _until_signalled(demo: Demo, *, serve: bool) -> int:
    try:
        return await interruptible(demo.run(serve=serve))
    except Interrupted as interrupted:
        demo.flow.line("Stopped.")
        return 0 if serve and interrupted.numbers == [signal.SIGINT] else interrupted.exit_status


class Demo:
    """The play: what is started, what the client sees, and what is shown of both."""

    def __init__(self, settings: Settings, port: int | None) -> None:
        self._settings = settings
        self._port = port
        self._serves = False
        self._console = Output()
        self.flow = Flow(self._console)
        self._answer = AnswerPrinter(self.flow)
        self._mourned: Child | None = None

    async def run(self, *, serve: bool) -> int:
        """Start everything, play, and tidy up; return the exit status."""
        self._serves = serve
        folder = Path(tempfile.mkdtemp(prefix="baton-demo-"))
        failed = False
        try:
            async with self._cluster(folder) as (cluster, http):
                played = self._stay_up(cluster) if serve else cluster.guard(self._play(cluster, http))
                failed = not await played
        except BatonError as error:
            failed = True
            self.flow.end_line()
            if not isinstance(error, DemoError):
                raise
            Console(stderr=True, highlight=False, soft_wrap=True).print(f"baton demo: {error}", markup=False)
        finally:
            self._tidy_up(folder, keep_logs=failed)
        return 1 if failed else 0

    @contextlib.asynccontextmanager
    async def _cluster(self, folder: Path) -> AsyncIterator[tuple[Cluster, httpx2.AsyncClient]]:
        """Database, pods, worker, and a client that makes a new connection for each request."""
        self.flow.line("baton demo: one answer, two pods, and a kill -9 in the middle of it", "bold")
        self.flow.line()
        limits = httpx2.Limits(max_keepalive_connections=0)
        async with contextlib.AsyncExitStack() as stack:
            port = stack.enter_context(reserved_port(self._port or 0))
            environment = self._database(stack, folder)
            with self._step("Bringing its schema up to date"):
                await migrate(environment["BATON_DATABASE_URL"], days_ahead=self._settings.partition_days_ahead)
            http = httpx2.AsyncClient(trust_env=False, limits=limits, timeout=REQUEST_SECONDS)
            await stack.enter_async_context(http)
            with self._step("Starting two pods on one port, and a worker"):
                cluster = await stack.enter_async_context(Cluster.open(folder, _programs(port), environment))
                await cluster.wait_until_ready(http)
            self._introduce(cluster)
            yield cluster, http

    def _database(self, stack: contextlib.AsyncExitStack, folder: Path) -> dict[str, str]:
        """Start a Postgres, or take the one that is set; return the children's settings."""
        own = self._settings
        environment = {
            "BATON_ALLOW_ANONYMOUS": "true",
            "BATON_REPLAY_SPEED": str(own.replay_speed),
            "BATON_PATH_PREFIX": "",
            "BATON_DEMO": str(self._serves).lower(),
        }
        if own.database_url is None:
            # Another database needs no embedded one: it may not be installed.
            from .embedded import embedded_postgres

            with self._step("Starting an embedded Postgres"):
                return environment | {"BATON_DATABASE_URL": stack.enter_context(embedded_postgres(folder))}
        parts = urlsplit(own.dsn)
        self.flow.line(f"Using the database of BATON_DATABASE_URL: {parts.path[1:]} on {parts.hostname or 'localhost'}")
        return environment | {"BATON_DATABASE_URL": own.dsn, "BATON_LISTEN_DATABASE_URL": own.listen_dsn}

    def _introduce(self, cluster: Cluster) -> None:
        for child in cluster.children.values():
            line = f"  {child.name:<8} pid {child.pid:<8}"
            self.flow.line(f"{line} {cluster.address}" if child in cluster.pods else line.rstrip(), "dim")
        self.flow.line()

    async def _play(self, cluster: Cluster, http: httpx2.AsyncClient) -> bool:
        """Ask, watch the answer, kill the pod that serves it; return whether the answer arrived whole."""
        asked_at_seconds = monotonic()
        created = await _create(cluster, http)
        self.flow.line(f"POST /v1/streams: {QUESTION}", "bold")
        self.flow.line(f"GET {created['events_url']}", "bold")
        seen: list[Sighting] = []
        try:
            async with asyncio.timeout(ANSWER_SECONDS / min(1, self._settings.replay_speed)):
                await self._watch(
                    Follower(http, cluster.address + created["events_url"], patience_seconds=20), cluster, seen
                )
        except TimeoutError:
            raise DemoError("The answer did not end in time.") from None
        self._answer.end()
        return self._pronounce(Verdict.of(seen, asked_at_seconds=asked_at_seconds))

    async def _watch(self, follower: Follower, cluster: Cluster, seen: list[Sighting]) -> None:
        """Show what comes, and note it; kill the pod once, when part of the text is there."""
        pod, texts = "", 0
        async with contextlib.aclosing(follower.run()) as sightings:
            async for sighting in sightings:
                seen.append(sighting)
                if isinstance(sighting, Connected):
                    pod = sighting.pod
                    self._tell_connected(sighting)
                elif isinstance(sighting, Disconnected):
                    self._tell_disconnected(sighting, cluster.children.get(pod))
                else:
                    self._answer.show(sighting.event)
                    texts += sighting.event["type"] == "text"
                    if texts == KILL_AFTER_TEXTS and not cluster.killed:
                        await cluster.kill(pod)

    def _tell_connected(self, sighting: Connected) -> None:
        if sighting.cursor:
            self.flow.line(f"-- {sighting.pod} continues after Last-Event-ID: {sighting.cursor}", "bold green")
        else:
            self.flow.line(f"-- {sighting.pod} answers", "bold green")
        self.flow.line()

    def _tell_disconnected(self, sighting: Disconnected, child: Child | None) -> None:
        # The kill is shown here: what the pod had sent before still arrived after it.
        if child is not None and child.dismissed and self._mourned is None:
            self._mourned = child
            self.flow.line()
            self.flow.line(f"-- kill -9 {child.pid}: {child.name} is dead, after event {sighting.cursor}", "bold red")
        self.flow.line(f"-- {sighting.reason}; reconnecting in {sighting.pause_seconds:.1f} s", "yellow")

    def _pronounce(self, verdict: Verdict) -> bool:
        self.flow.line()
        self.flow.line("What the client received", "bold")
        for label, value in _rows(verdict):
            self.flow.line(f"  {label:<12} {value}")
        self.flow.line()
        complaints = verdict.complaints()
        for complaint in complaints:
            self.flow.line(complaint, "bold red")
        if not complaints:
            self.flow.line("A pod died in mid-answer. No event is missing, and none came twice.", "bold green")
        return not complaints

    async def _stay_up(self, cluster: Cluster) -> bool:
        """Print what to try, and restart what ends, until Ctrl-C."""
        for line in _instructions(cluster):
            # Not wrapped, so that a command can be copied.
            self._console.print(line, markup=False, soft_wrap=True)
        while True:
            child = await cluster.next_end()
            self.flow.line(f"{child.name} (pid {child.pid}) ended: {child.fate}.", "yellow")
            again = await cluster.restart(child)
            self.flow.line(f"{again.name} restarts (pid {again.pid}).", "dim")

    @contextlib.contextmanager
    def _step(self, what: str) -> Iterator[None]:
        """Say what is being done and, when it is done, how long it took."""
        started_at = monotonic()
        self.flow.write(f"{what} ... ")
        self.flow.flush()
        yield
        self.flow.write(f"{monotonic() - started_at:.1f} s\n")

    def _tidy_up(self, folder: Path, *, keep_logs: bool) -> None:
        if not keep_logs or not list(folder.glob("*.log")):
            shutil.rmtree(folder, ignore_errors=True)
            return
        shutil.rmtree(folder / "postgres", ignore_errors=True)
        self.flow.line(f"The logs of the processes are in {folder}")


def _programs(port: int) -> list[Program]:
    return [Program("pod-a", port), Program("pod-b", port), Program("worker")]


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


def _rows(verdict: Verdict) -> Iterator[tuple[str, str]]:
    first, duration = verdict.time_to_first_token_seconds, verdict.duration_seconds
    yield "events", f"{verdict.received}, numbered 1 to {verdict.last_seq}"
    yield "missing", str(len(verdict.missing))
    yield "repeated", str(len(verdict.repeated))
    for item in verdict.resumptions:
        yield (
            "resumed",
            f"after event {item.seq}, {item.from_pod} -> {item.to_pod}, {item.pause_seconds:.2f} s later",
        )
    yield "first token", "none" if first is None else f"after {first:.2f} s"
    ends = ", ".join(f"{status}, event {seq}" for seq, status in verdict.ends) or "none"
    yield "end", ends if duration is None else f"{ends}, after {duration:.1f} s"


def _instructions(cluster: Cluster) -> list[str]:
    address = cluster.address
    kills = "\n".join(f"      kill -9 {pod.pid}    # {pod.name}" for pod in cluster.pods)
    body = orjson.dumps({"input": QUESTION}).decode()
    return f"""\
In a browser:

      {address}/demo       ask, and kill the pod that answers
      {address}/console    pods, workers, streams, and the last ten minutes

By hand, in another terminal:

  1.  Create a stream, and keep its address:
      URL={address}$(curl -s {address}/v1/streams -d '{body}' | grep -o '/v1[^"]*/events')
  2.  Follow it; the header x-baton-pod names the pod that serves it:
      curl -Ni "$URL"
  3.  Kill that pod in mid-answer:
{kills}
  4.  Continue after the last id that you saw, on the other pod:
      curl -Ni -H 'Last-Event-ID: 200' "$URL"

Ctrl-C ends it.
""".splitlines()
