"""The measured systems: each starts on loopback, creates streams of marked tokens, and returns where to follow them.

Each has a producer that yields `@N,T@ word` at a steady rate, with one timer of 4 ms for all streams. It yields no more
than the system accepts.
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
    """Return a client that creates streams. It drops idle connections before a server can, perhaps during a request."""
    return httpx2.AsyncClient(timeout=BEGIN_SECONDS, limits=httpx2.Limits(keepalive_expiry=1), trust_env=False)


def load_input(tokens: int, rate: float, pause_seconds: float, stays_seconds: float) -> dict[str, object]:
    """Return the input of `bench.load.generate` for the arguments of `System.begin`."""
    return {"rate": rate, "tokens": tokens, "marked": True, "pause": pause_seconds, "stays": stays_seconds}


@dataclass(frozen=True, slots=True)
class Shape:
    """The capacity to start a system with: concurrent streams and viewers, and processes of each kind."""

    streams: int
    viewers: int
    pods: int = 1
    workers: int = 1
    slow_commits: bool = False
    databases: int = 1  # of Baton


class System(Protocol):
    """A running peer."""

    @property
    def parts(self) -> Mapping[str, Sequence[psutil.Process]]:
        """The processes whose CPU time counts, by part. Their children are included."""
        ...

    async def begin(self, tokens: int, rate: float, pause_seconds: float = 0, stays_seconds: float = 0) -> Target:
        """Start a stream of this many tokens at this rate, after a pause; it ends some seconds after the last token.

        Raises:
            RuntimeError: the system has broken down.
        """
        ...


class Peer(Protocol):
    """A system that can be started."""

    @property
    def name(self) -> str:
        """The name in tables."""
        ...

    @property
    def keeps(self) -> bool:
        """Whether its events survive a crash of any of its processes."""
        ...

    @property
    def serves(self) -> str:
        """The part that viewers connect to."""
        ...

    @property
    def flags(self) -> Sequence[str]:
        """The arguments of its viewers."""
        ...

    def versions(self) -> Mapping[str, str]:
        """The versions of its components, once installed."""
        ...

    def install(self) -> None:
        """Install what it needs, if possible.

        Raises:
            Missing: something that it needs is not here, and how to get it.
        """
        ...

    def open(self, folder: Path, shape: Shape) -> AbstractAsyncContextManager[System]:
        """Start it, with its files in a folder; end it on exit."""
        ...
