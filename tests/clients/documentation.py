"""The code on the pages of the documentation, and the processes that run it."""

from __future__ import annotations

import asyncio
import contextlib
import re
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

from tests.clients.node import SDKS
from tests.support.logbook import DEADLINE_SECONDS
from tests.support.processes import environment

_LANGUAGE = re.compile(r"^```(\w+)$", re.MULTILINE)


def code_of(heading: str, language: str, page: Path = SDKS) -> list[str]:
    """The blocks of code below a heading, up to the next one that is not deeper."""
    level, section = re.split(rf"^(##+) {re.escape(heading)}\n", page.read_text(), maxsplit=1, flags=re.MULTILINE)[1:]
    section = re.split(rf"^#{{2,{len(level)}}} ", section, maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found, heading
    return found


def languages_of(*pages: Path) -> Counter[str]:
    """How many blocks of code these pages have in each language."""
    return Counter(language for page in pages for language in _LANGUAGE.findall(page.read_text()))


@contextlib.asynccontextmanager
async def running(*command: str, url: str, **given: str) -> AsyncIterator[Process]:
    """Run code for pods at this address."""
    env = environment(BATON_URL=url, **given)
    process = await asyncio.create_subprocess_exec(*command, env=env, stdout=PIPE, stderr=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def printed_by(*command: str, url: str, **given: str) -> str:
    """Run code to its end; return what it prints."""
    async with running(*command, url=url, **given) as process:
        return await rest_of(process)


async def rest_of(process: Process) -> str:
    """Wait for the end; return what it prints."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        out, err = await process.communicate()
    assert process.returncode == 0, (out.decode(), err.decode())
    return out.decode()
