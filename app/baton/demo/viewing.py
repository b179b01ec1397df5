"""The demo's client: follows the answer, shows it, and kills its pod and its worker on the way.

Kills are shown where the reader can see them: after the last event that the dead process had sent or written. Events
that are on their way when it dies still arrive.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Final

import httpx2
import orjson

from ..client import Connected, Disconnected, Follower, Received, Sighting
from ..commands.terminal import AnswerPrinter, Flow
from ..errors import DemoError
from .cluster import Child, Cluster

KILL_POD_AFTER_TEXTS: Final = 110
KILL_WORKER_AFTER_TEXTS: Final = 337
PATIENCE_SECONDS: Final = 20


@dataclass(frozen=True, slots=True)
class DeadWorker:
    """The worker that was killed, and the last event that it had written."""

    child: Child
    tail: int


class Viewing:
    """One answer of a cluster, as its client sees it. `seen` is what happened so far."""

    def __init__(self, cluster: Cluster, http: httpx2.AsyncClient, flow: Flow, *, lease_seconds: float) -> None:
        self.seen: list[Sighting] = []
        self.writers: list[str] = []  # the worker that was killed, and the one that continued
        self._cluster = cluster
        self._http = http
        self._flow = flow
        self._lease_seconds = lease_seconds
        self._answer = AnswerPrinter(flow)
        self._pod = ""
        self._texts = 0
        self._event_at_seconds = 0.0
        self._dead_pod: Child | None = None
        self._dead_worker: DeadWorker | None = None

    async def run(self, created: dict[str, Any]) -> None:
        """Follow the created stream to its end.

        Raises:
            DemoError: no pod answers, or a process that this command did not start serves or writes the answer.
            FollowError: a pod refused the stream.
        """
        url = self._cluster.address + created["events_url"]
        follower = Follower(self._http, url, patience_seconds=PATIENCE_SECONDS)
        async with contextlib.aclosing(follower.run()) as sightings:
            async for sighting in sightings:
                self.seen.append(sighting)
                if isinstance(sighting, Connected):
                    self._show_connected(sighting)
                elif isinstance(sighting, Disconnected):
                    self._show_disconnected(sighting)
                else:
                    await self._take(sighting, created["id"])
        self._answer.end()

    async def _take(self, received: Received, stream_id: str) -> None:
        """Show an event, and kill a process if it is the moment."""
        kind = received.event["type"]
        if kind == "resumed":
            await self._show_resumed(received, stream_id)
        else:
            self._answer.show(received.event)
        if kind == "text":
            self._texts += 1
            if self._texts == KILL_POD_AFTER_TEXTS:
                self._dead_pod = await self._cluster.kill(self._pod)
            elif self._texts == KILL_WORKER_AFTER_TEXTS:
                await self._kill_worker(stream_id)
        self._show_dead_worker(received.seq)
        self._event_at_seconds = received.at_seconds

    async def _kill_worker(self, stream_id: str) -> None:
        name = await self._writer(stream_id)
        if name is None:
            return  # the answer has ended already; the verdict says that the demo shows nothing
        child = await self._cluster.kill(name)
        self.writers = [name]
        self._dead_worker = DeadWorker(child, (await self._get(f"/v1/streams/{stream_id}"))["last_event_id"])

    def _show_dead_worker(self, seq: int) -> None:
        dead = self._dead_worker
        if dead is not None and seq >= dead.tail:
            self._dead_worker = None
            self._flow.line()
            self._flow.line(f"-- kill -9 {dead.child.pid}: {dead.child.name} is dead, after event {seq}", "bold red")
            self._flow.line(
                f"-- its lease of {self._lease_seconds:g} s must expire before another worker takes over", "yellow"
            )

    async def _show_resumed(self, received: Received, stream_id: str) -> None:
        name = await self._writer(stream_id) or "another worker"
        self.writers.append(name)
        pause_seconds = received.at_seconds - self._event_at_seconds
        self._flow.line(
            f"-- {name} continues after event {received.seq - 1}, {pause_seconds:.1f} s later", "bold green"
        )
        self._flow.line()

    def _show_connected(self, connected: Connected) -> None:
        self._pod = connected.pod
        if connected.cursor:
            self._flow.line(f"-- {connected.pod} continues after Last-Event-ID: {connected.cursor}", "bold green")
        else:
            self._flow.line(f"-- {connected.pod} answers", "bold green")
        self._flow.line()

    def _show_disconnected(self, lost: Disconnected) -> None:
        # The kill is shown here: events that the pod had sent before it arrived after it.
        if self._dead_pod is not None:
            dead, self._dead_pod = self._dead_pod, None
            self._flow.line()
            self._flow.line(f"-- kill -9 {dead.pid}: {dead.name} is dead, after event {lost.cursor}", "bold red")
        self._flow.line(f"-- {lost.reason}; reconnecting in {lost.pause_seconds:.1f} s", "yellow")

    async def _writer(self, stream_id: str) -> str | None:
        """Return the name of the worker that writes the stream now."""
        name: str | None = (await self._get(f"/demo/streams/{stream_id}"))["worker"]
        return name

    async def _get(self, path: str) -> dict[str, Any]:
        try:
            reply = await self._http.get(f"{self._cluster.address}{path}")
        except httpx2.TransportError as error:
            raise DemoError(f"GET {path} failed: {error}") from error
        if not reply.is_success:
            raise DemoError(f"GET {path} failed: {reply.status_code} {reply.text}")
        content: dict[str, Any] = orjson.loads(reply.content)
        return content
