"""The command line as processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from tests.support.logbook import DEADLINE_SECONDS

BATON = Path(sys.executable).parent / "baton"
SERVES = r'Pod (\S+) serves on (http://[^\s"]+)'


def environment(**given: str) -> dict[str, str]:
    """The variables that a command needs, and the given ones."""
    # The last one has coverage measure the command, too, where it is measured.
    names = ("PATH", "HOME", "TMPDIR", "LANG", "COVERAGE_PROCESS_CONFIG")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return kept | given


@dataclass(slots=True)
class Running:
    """A process, and what it has written to standard error so far."""

    process: Process
    lines: list[str] = field(default_factory=list)
    _written: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def said(self, pattern: str) -> re.Match[str]:
        """Wait for a line that matches."""

        def found() -> re.Match[str] | None:
            return next(filter(None, (re.search(pattern, line) for line in self.lines)), None)

        try:
            async with asyncio.timeout(DEADLINE_SECONDS), self._written:
                await self._written.wait_for(lambda: found() is not None or self.process.stderr.at_eof())  # type: ignore[union-attr]
        except TimeoutError:
            raise AssertionError(f"nothing like {pattern!r} in {self.lines}") from None
        match = found()
        assert match, self.lines
        return match

    async def read(self) -> None:
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            async with self._written:
                self.lines.append(line.decode().rstrip())
                self._written.notify_all()
        async with self._written:
            self._written.notify_all()

    async def ends(self, within_seconds: float = DEADLINE_SECONDS) -> int:
        return await asyncio.wait_for(self.process.wait(), within_seconds)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@contextlib.asynccontextmanager
async def running(
    *arguments: str, env: Mapping[str, str], command: Path = BATON, cwd: Path | None = None
) -> AsyncIterator[Running]:
    """Run `baton` in the background; kill what is left of it at the end."""
    process = await asyncio.create_subprocess_exec(command, *arguments, env=env, cwd=cwd, stderr=PIPE)
    started = Running(process)
    reading = asyncio.create_task(started.read())
    try:
        yield started
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


async def finished(
    *arguments: str | Path, env: Mapping[str, str], command: Path = BATON, cwd: Path | None = None
) -> tuple[int, str, str]:
    """Run a command to its end; return its exit code and what it wrote."""
    process = await asyncio.create_subprocess_exec(command, *arguments, env=env, cwd=cwd, stdout=PIPE, stderr=PIPE)
    try:
        out, err = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
    except TimeoutError:
        process.kill()
        out, err = await process.communicate()
        raise AssertionError(f"{arguments} did not end: {out.decode()} {err.decode()}") from None
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def processes_of(folder: Path) -> list[str]:
    """Return the processes whose folder for temporary files this is, each as its id and its command."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("TMPDIR") == str(folder):
                found.append(f"{process.pid} {process.cmdline()}")
    return found
