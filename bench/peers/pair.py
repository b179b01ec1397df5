"""A system of two processes of ours, a producer and a server, and Postgres."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import httpx2
import psutil
from bench.viewers import Target

from . import load_input


@dataclass(frozen=True, slots=True)
class RunningPair:
    """The ports of both, and a path for each stream."""

    producer: int
    server: int
    http: httpx2.AsyncClient
    parts: Mapping[str, Sequence[psutil.Process]]
    paths: Iterator[str]

    async def begin(self, tokens: int, rate: float, pause_seconds: float = 0, stays_seconds: float = 0) -> Target:
        """Make the producer start a stream, to be followed at the server."""
        path = next(self.paths)
        load = load_input(tokens, rate, pause_seconds, stays_seconds)
        (await self.http.post(f"http://127.0.0.1:{self.producer}{path}", json=load)).raise_for_status()
        return Target(self.server, path, tokens)
