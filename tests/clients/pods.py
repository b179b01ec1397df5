"""Two pods as processes of their own, one of which a test may kill, and a worker whose generator the test holds."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass

from tests.support.cluster import Cluster, Tap
from tests.support.processes import SERVES, Running, environment, running

from baton.errors import GenerationError
from baton.generators.protocol import Yielded

WORDS = [f"word{number} " for number in range(600)]
ANSWER = "".join(WORDS)


@dataclass(frozen=True, slots=True)
class TwoPods:
    """`first` is the one that `kill` kills. `tap` is the generator of a worker that outlives both.

    It is called `tap`, and `replay`, as the documentation and whoever names none call theirs.
    """

    cluster: Cluster
    tap: Tap
    processes: tuple[Running, Running]
    first: str
    second: str

    async def kill(self) -> None:
        """End the first pod as a platform does that has lost patience."""
        self.processes[0].signal(signal.SIGKILL)
        await self.processes[0].ends()

    def say(self, *said: Yielded) -> None:
        """Have the generator yield."""
        self.tap.let(*said)

    def fail(self, message: str) -> None:
        """Have the generator fail."""
        self.tap.fail(GenerationError("tired", message))

    def finish(self) -> None:
        """Have the generator yield its last events, and end."""
        self.tap.let({"type": "usage", "input_tokens": 1, "output_tokens": len(WORDS)})
        self.tap.end()


@contextlib.asynccontextmanager
async def two_pods(cluster: Cluster, *, allowed_origins: str = "") -> AsyncIterator[TwoPods]:
    """Start them, for pages of these origins."""
    tap = Tap()
    await cluster.worker({"tap": tap, "replay": tap}, flush_interval_milliseconds=5)
    given = {"BATON_DATABASE_URL": cluster.dsn, "BATON_ALLOW_ANONYMOUS": "true", "BATON_PORT": "0"}
    env = environment(**given, BATON_ALLOWED_ORIGINS=allowed_origins)
    async with running("serve", env=env) as one, running("serve", env=env) as other:
        first, second = (await one.said(SERVES))[2], (await other.said(SERVES))[2]
        yield TwoPods(cluster, tap, (one, other), first, second)
