"""The reference server of Durable Streams (npm), in memory or on disk. Its authors do not intend it for production."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.processes import free_port, program

from . import Shape, http_client
from .node import command, node_version, npm_version, script
from .published import Published, producers, publisher

PACKAGE: Final = "@durable-streams/server"


@dataclass(frozen=True, slots=True)
class DurableStreams:
    """The server, with its files on disk if it keeps them."""

    keeps: bool
    linger_milliseconds: float | None = None  # of fenced producers; None: the publisher is none
    serves: str = "server"
    flags: Sequence[str] = ("--leave",)

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"Durable Streams reference server, {'disk' if self.keeps else 'memory'}"

    def versions(self) -> Mapping[str, str]:
        """The version of the package."""
        return {"Node": node_version(), PACKAGE: npm_version(PACKAGE)}

    def install(self) -> None:
        """Install it from npm."""
        script("durable_streams")

    @contextlib.asynccontextmanager
    async def open(self, folder: Path, shape: Shape) -> AsyncIterator[Published]:
        """Start the server and the publisher, which joins due tokens as their client library does."""
        port = free_port()
        if self.linger_milliseconds is None:
            publishing_to = publisher(port, "--join")
        else:
            publishing_to = producers(port, shape.streams, self.linger_milliseconds, "application/json")
        data = [str(folder / "data")] if self.keeps else []
        async with (
            program(folder, *command("durable_streams"), str(port), *data, port=port) as server,
            publishing_to as publishing,
            http_client() as http,
        ):
            yield Published(port, "/{}", "/{}?offset=-1&live=sse", {"server": [server]}, publishing, http)
