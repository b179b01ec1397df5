"""Pods as processes behind one address, of which one is killed and replaced every few seconds."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from tests.support.processes import SERVES, Running, environment, running
from tests.support.request_balancer import Balancer, request_balancer


@dataclass(slots=True)
class LosingPods:
    """The pods that run, by address."""

    balancer: Balancer
    env: Mapping[str, str]
    chance: random.Random
    kills: int = 0
    _running: dict[str, Running] = field(default_factory=dict)
    _stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    @property
    def url(self) -> str:
        return self.balancer.url

    async def start(self) -> None:
        """Start a pod, and let the balancer know once it serves."""
        pod = await self._stack.enter_async_context(running("serve", env=self.env))
        url = (await pod.said(SERVES))[2]
        self._running[url] = pod
        self.balancer.pods.append(url)

    async def kill(self) -> None:
        """Kill a pod in the middle of whatever it does. The balancer finds out when it is refused or cut off."""
        url = self.chance.choice(list(self._running))
        pod = self._running.pop(url)
        pod.signal(signal.SIGKILL)
        await pod.ends()
        self.balancer.pods.remove(url)
        self.kills += 1

    @contextlib.asynccontextmanager
    async def losing(self, every_seconds: float) -> AsyncIterator[None]:
        """Kill pods inside the block, each at its time unless too few run, and replace them."""

        async def lose() -> None:
            async with asyncio.TaskGroup() as starting:
                while True:
                    await asyncio.sleep(every_seconds)
                    if len(self._running) > 1:
                        await self.kill()
                        starting.create_task(self.start())

        task = asyncio.create_task(lose())
        try:
            yield
            if task.done():
                task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def losing_pods(
    dsn: str, count: int = 3, settings: Mapping[str, str] | None = None, *, seed: int = 0
) -> AsyncIterator[LosingPods]:
    """Run pods behind a balancer that asks a random one. They are killed inside of `losing`."""
    given = {"BATON_DATABASE_URL": dsn, "BATON_ALLOW_ANONYMOUS": "true", "BATON_PORT": "0", **(settings or {})}
    async with request_balancer([], seed=seed) as balancer:
        pods = LosingPods(balancer, environment(**given), random.Random(seed))
        async with pods._stack:
            await asyncio.gather(*(pods.start() for _ in range(count)))
            yield pods
