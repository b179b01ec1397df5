"""The systems that are measured: each starts on loopback, makes streams of marked tokens, and says where to watch them.

In every one a producer yields `@N,T@ word` at a steady rate, for all streams from one timer of 4 ms, and stops making
more where the system cannot take them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import httpx2
import psutil
from bench.viewers import Target

BEGIN_SECONDS: Final = 60


def http_client() -> httpx2.AsyncClient:
    """A client that begins streams. It drops idle connections before the servers do, which may be while it asks."""
    return httpx2.AsyncClient(timeout=BEGIN_SECONDS, limits=httpx2.Limits(keepalive_expiry=1), trust_env=False)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a system is to be started for: as many streams and viewers at once, and how many processes of each kind."""

    streams: int
    viewers: int
    pods: int = 1
    workers: int = 1
    slow_commits: bool = False


class System(Protocol):
    """A peer that runs."""

    @property
    def parts(self) -> Mapping[str, Sequence[psutil.Process]]:
        """Whose CPU time counts, by what they are. Their children are counted with them."""
        ...

    async def begin(self, tokens: int, rate: float, pause_seconds: float = 0, stays_seconds: float = 0) -> Target:
        """Begin a stream of so many tokens, so many a second, the first after a pause; it ends so long after the last.

        Raises:
            RuntimeError: the system has broken down.
        """
        ...


class Peer(Protocol):
    """A system that can be started."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def keeps(self) -> bool:
        """Whether a crash of any of its processes leaves its events."""
        ...

    @property
    def serves(self) -> str:
        """Which of its parts the viewers are connected to."""
        ...

    @property
    def flags(self) -> Sequence[str]:
        """What its viewers need."""
        ...

    def versions(self) -> Mapping[str, str]:
        """Of what it is made of, once it is installed."""
        ...

    def install(self) -> None:
        """Fetch what it needs, where that is possible.

        Raises:
            Missing: something that it needs is not here, and how to get it.
        """
        ...

    def open(self, folder: Path, shape: Shape) -> AbstractAsyncContextManager[System]:
        """Start it, with its files in a folder, and end it when left."""
        ...
