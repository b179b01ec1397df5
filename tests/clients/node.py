"""node, and the scripts here that run clients from npm."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.packages import node, npm
from tests.support.logbook import DEADLINE_SECONDS

HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs"
CLIENTS = DOCS / "clients.md"
AI_SDK = DOCS / "ai-sdk.md"
SDKS = DOCS / "sdks.md"
JAVASCRIPT = DOCS / "javascript.md"
REACT_NATIVE = DOCS / "react-native.md"
PRODUCERS = DOCS / "producers.md"
CLIENT_PAGES = (CLIENTS, AI_SDK, SDKS, JAVASCRIPT, REACT_NATIVE)


@dataclass(slots=True)
class Script:
    """A script that runs. It prints what it sees, one JSON object a line, each with the name of an `event`."""

    process: Process
    said: list[dict[str, Any]] = field(default_factory=list)

    async def says(self, event: str) -> dict[str, Any]:
        """Read on to the next line that says this."""
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE_SECONDS):
            while line := await self.process.stdout.readline():
                said: dict[str, Any] = json.loads(line)
                self.said.append(said)
                if said["event"] == event:
                    return said
        raise AssertionError(f"The script ended without {event!r}, after {self.said!r:.2000}.")

    def hears(self, line: str) -> None:
        """Send a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())

    def closes(self) -> None:
        """End its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    async def rest(self) -> list[dict[str, Any]]:
        """Read on to the end; return all lines."""
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE_SECONDS):
            self.said += [json.loads(line) async for line in self.process.stdout]
            assert await self.process.wait() == 0, self.said
        return self.said


@dataclass(frozen=True, slots=True)
class Node:
    """The scripts here, beside the packages that they import."""

    folder: Path

    @contextlib.asynccontextmanager
    async def running(self, script: str, *arguments: str, url: str = "") -> AsyncIterator[Script]:
        """Run a script, and with it the code of the documentation for pods at `url`."""
        for name, code in documented().items():
            (self.folder / name).write_text(code.replace("http://localhost:8001", url))
        command = (str(node()), str(self.folder / script), *arguments)
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, limit=2**24)
        try:
            yield Script(process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


def documented(*pages: Path) -> dict[str, str]:
    """The modules on these pages of the documentation, by default on all, which begin with their names."""
    text = "".join(page.read_text() for page in pages or (*CLIENT_PAGES, PRODUCERS))
    return {match[2]: match[1] for match in re.finditer(r"```js\n(// (\S+\.mjs)\n.*?)```", text, re.DOTALL)}


def installed() -> Path:
    """Install the packages, unless that was done before; return their folder."""
    return npm(HERE, "clients") / "node_modules"
