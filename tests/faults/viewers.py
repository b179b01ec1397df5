"""Clients that reconnect after any fault, and fail if they miss an event or get one twice."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import httpx2
from tests.support.logbook import DEADLINE_SECONDS, until

from baton.client import Connected, Follower, Received


class Viewer:
    """Follows one stream to its end in a task, and checks each event as it arrives."""

    def __init__(self, http: httpx2.AsyncClient, url: str, stream_id: object) -> None:
        self._follower = Follower(http, f"{url}/v1/streams/{stream_id}/events")
        self.events: list[dict[str, Any]] = []
        self.pods: list[str] = []
        self.task = asyncio.create_task(self._watch())

    async def _watch(self) -> list[dict[str, Any]]:
        async with contextlib.aclosing(self._follower.run()) as sightings:
            async for sighting in sightings:
                if isinstance(sighting, Connected):
                    self.pods.append(sighting.pod)
                elif isinstance(sighting, Received):
                    assert sighting.seq == len(self.events) + 1, "an event is missing, repeated or out of order"
                    self.events.append(sighting.event)
        types = [event["type"] for event in self.events]
        assert types.count("done") == 1
        assert types[-1] == "done"
        return self.events

    async def end(self, within_seconds: float = DEADLINE_SECONDS) -> dict[str, Any]:
        """Wait for the terminal event, and return it."""
        async with asyncio.timeout(within_seconds):
            return (await self.task)[-1]

    async def has(self, count: int) -> None:
        """Wait until it has this many events, or has failed."""
        await until(lambda: len(self.events) >= count or self.task.done())
        if self.task.done():
            self.task.result()

    @property
    def text(self) -> str:
        """The answer that it shows: what came after the last `reset`."""
        resets = [index for index, event in enumerate(self.events) if event["type"] == "reset"]
        shown = self.events[resets[-1] :] if resets else self.events
        return "".join(event["delta"] for event in shown if event["type"] == "text")


def counted(count: int) -> str:
    """The whole answer of the generators that count."""
    return "".join(f"{number} " for number in range(count))
