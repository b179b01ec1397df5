"""Creates streams without an idempotency key or a chat, which any database may get.

So they must never fail for long while one database is up: a pod that has reached a database for a moment (see `reach`)
must create the stream, however many others are away. A pod that is being killed, suspended, stopped or started is
excused; each other failure is a complaint.

A create that got no answer may have made a stream that nobody knows. Chaos cancels those at the end (`Workload`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

import httpx2
import orjson

from ..backoff import Backoff
from ..demo.cluster import Program
from .complaint import Complaint
from .reach import Reach

# A pod waits two seconds for each database that hangs, and five for the last one.
PATIENCE_SECONDS: Final = 25


class UnkeyedCreates:
    """Sends creates to one pod after another. `failed` counts the failures that a fault excuses."""

    def __init__(
        self,
        http: httpx2.AsyncClient,
        pods: Sequence[Program],
        reach: Reach,
        violate: Callable[[Complaint, str, str], None],
    ) -> None:
        self.created = 0
        self.failed = 0
        self.longest_seconds = 0.0  # of one create, with its tries
        self._http = http
        self._pods = pods
        self._reach = reach
        self._violate = violate

    async def create(self, body: bytes, random: Random, over: Callable[[], bool]) -> str | None:
        """Create a stream, and return its id; None if it fails until `over()`."""
        backoff, began_at = Backoff(cap_seconds=1), time.monotonic()
        while not over():
            pod, asked_at = random.choice(self._pods), time.monotonic()
            created, failure = await self._try(pod, body)
            if created is not None:
                self.created += 1
                self.longest_seconds = max(self.longest_seconds, time.monotonic() - began_at)
                return created
            self._judge(pod, asked_at, failure)
            await backoff.sleep()
        return None

    def _judge(self, pod: Program, asked_at: float, failure: str) -> None:
        if reached := self._reach.reached(pod.name, asked_at):
            seconds = time.monotonic() - asked_at
            detail = f"after {seconds:.1f} s: {failure}. The pod can reach the databases {reached}"
            self._violate(Complaint("create failed", 0, detail), "", pod.name)
        else:
            self.failed += 1

    async def _try(self, pod: Program, body: bytes) -> tuple[str | None, str]:
        """Return the id of the new stream, or why there is none."""
        try:
            reply = await self._http.post(f"{pod.address}/v1/streams", content=body, timeout=PATIENCE_SECONDS)
        except (httpx2.TransportError, AttributeError) as error:
            # anyio raises the second one if a pod is killed just after it has accepted the connection.
            return None, repr(error)
        if reply.is_success:
            return str(orjson.loads(reply.content)["id"]), ""
        return None, f"{reply.status_code} {reply.text[:200]}"
