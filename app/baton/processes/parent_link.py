"""A child's side of the channel: it reports to the parent, and does what the parent asks.

A parent asks its children to leave over the channel, and sends no signal to those that are ready. For service managers
signal all processes of a command at once, and a second signal means "at once": the parent's would be that. So the
parent's wish and a signal of somebody else begin one and the same drain, and only two signals, or the parent's second
wish, cut it short.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry

from .channel import Channel, Message
from .families import Families, collected, merged, rendered

# How often a child shows that its event loop runs.
BEAT_SECONDS: Final = 1.0
# How long a child that is asked to leave while it starts may take to undo what it has begun.
ABANDON_SECONDS: Final = 5.0
# How long the metrics of all processes may take. The parent waits for less.
ANSWER_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Work:
    """What a child runs, once it has been set up. `leave` drains it, and `hurry` ends it at once."""

    leave: Callable[[], None]
    hurry: Callable[[], None]
    registries: Mapping[str, CollectorRegistry]  # by "pod" and "worker"


class ParentLink:
    """Made when the child starts. It is a `pod.siblings.Siblings`."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._starting: asyncio.Task[None] | None = None
        self._work: Work | None = None
        self._ready = asyncio.Event()
        self._signals = 0
        self._leaving = False
        self._asked: asyncio.Future[str] | None = None
        self.abandoned = False

    async def open(self, end: socket.socket) -> None:
        """Take over this end of the pair of sockets."""
        self._channel = await Channel.open(end)

    def begin(self, starting: asyncio.Task[None]) -> None:
        """Note the task that sets up the work, to cancel it if this child is asked to leave before."""
        self._starting = starting

    def attach(self, work: Work, ready: asyncio.Event | None = None) -> None:
        """Take over the work, which is ready now, or when that event is set."""
        self._work = work
        self._ready = self._ready if ready is None else ready
        if ready is None:
            self._ready.set()
        if self._leaving:
            work.leave()

    async def run(self) -> None:
        """Report to the parent and obey it, until it closes the channel or this is cancelled."""
        reports = [asyncio.create_task(report()) for report in (self._beat, self._announce)]
        try:
            async for message in self._channel.messages():
                self._obey(message)
        finally:
            for report in reports:
                report.cancel()
            await asyncio.gather(*reports, return_exceptions=True)
            self._channel.close()

    def leave(self) -> None:
        """Begin to leave; when called again, do nothing."""
        if not self._leaving:
            self._leaving = True
            self.abandon() if self._work is None else self._work.leave()

    def abandon(self) -> None:
        """End this child, which has no clients and no streams yet."""
        self.abandoned = True
        if self._starting is not None:
            self._starting.cancel()
        asyncio.get_running_loop().call_later(ABANDON_SECONDS, os._exit, 0)

    def hurry(self) -> None:
        """Leave at once."""
        self.leave()
        if self._work is not None:
            self._work.hurry()

    def signalled(self) -> None:
        """Leave at the first signal, and at once at the second one."""
        self._signals += 1
        self.leave() if self._signals == 1 else self.hurry()

    async def render_metrics(self) -> bytes:
        """Return the metrics of all processes. If the parent does not answer in time, return those of this one."""
        if self._asked is None:
            self._asked = asyncio.get_running_loop().create_future()
            self._channel.send("ask")
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return (await asyncio.shield(self._asked)).encode()
        except TimeoutError:
            self._asked = None
            families = [family for part in self._families().values() for family in part]
            return rendered(merged({self._number: families}))

    def _families(self) -> dict[str, Families]:
        return {} if self._work is None else {part: collected(each) for part, each in self._work.registries.items()}

    def _obey(self, message: Message) -> None:
        match message["kind"]:
            case "leave":
                self.leave()
            case "hurry":
                self.hurry()
            case "measure":
                self._channel.send("measured", families=self._families())
            case "answer":
                asked, self._asked = self._asked, None
                if asked is not None and not asked.done():
                    asked.set_result(message["text"])

    async def _beat(self) -> None:
        while True:
            self._channel.send("beat")
            await asyncio.sleep(BEAT_SECONDS)

    async def _announce(self) -> None:
        await self._ready.wait()
        self._channel.send("ready")
