"""Code of older releases: what their processes are started from, beside those of today."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support.processes import SERVES, Running, environment, running

from baton.generators import GenerationRequest

PROJECT = Path(__file__).parent.parent.parent
MAIN = "from baton.cli import main; main()"
# It counts to 20, and on until a file exists.
COUNTING = """
import asyncio
from pathlib import Path

async def count(request):
    number = 0
    while number < 20 or not Path(request.input).exists():
        number += 1
        yield f"{number} "
        await asyncio.sleep(0.005)
"""


@dataclass(frozen=True, slots=True)
class Release:
    """An older release: a commit, the newest revision that its code knows, and revisions to block by a transaction.

    `beside` says that pods and workers of today run beside those of that release, as in a roll-out.
    """

    commit: str
    revision: str
    blocked: tuple[str, ...] = ()
    beside: bool = False


# The last commit before waiting streams. Commits are full hashes because clones may lack tags.
BEFORE_WAITS = Release("e5c7876887a3c1b3302b4ff024e1e49943a6d690", "0023", ("9001",), beside=True)


def code_of(release: Release, tmp_path: Path) -> Path:
    """Return the folder with the code of an older release, and a generator."""
    archive = subprocess.run(["git", "archive", release.commit, "app"], cwd=PROJECT, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(f"Commit {release.commit} is not in this clone. Fetch the whole history: git fetch --unshallow")
    folder = tmp_path / "before"
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    (folder / "app" / "counting.py").write_text(COUNTING)
    return folder / "app"


def environment_of(code: Path, dsn: str, **given: Any) -> dict[str, str]:
    """Return settings by names that the older release knows."""
    return environment(
        PYTHONPATH=str(code),
        BATON_DATABASE_URL=dsn,
        BATON_ALLOW_ANONYMOUS="true",
        BATON_PORT="0",
        BATON_GENERATORS="count=counting:count",
        BATON_PARTITION_DAYS_AHEAD="1",
        **{f"BATON_{name.upper()}": str(value) for name, value in given.items()},
    )


def older(
    code: Path, dsn: str, folder: Path, command: str, **given: Any
) -> contextlib.AbstractAsyncContextManager[Running]:
    """Run a pod (`serve`) or a worker (`worker`) of the older release."""
    env = environment_of(code, dsn, **given)
    return running("-c", MAIN, command, env=env, command=Path(sys.executable), cwd=folder)


@contextlib.asynccontextmanager
async def started(code: Path, dsn: str, folder: Path) -> AsyncIterator[tuple[str, list[Running]]]:
    """Start a pod and a worker of the older release; yield the pod's address and both processes."""
    async with older(code, dsn, folder, "serve") as pod, older(code, dsn, folder, "worker") as worker:
        yield (await pod.said(SERVES))[2], [pod, worker]


async def count(request: GenerationRequest) -> AsyncGenerator[str]:
    """The generator of the older release's worker, for a worker of today."""
    number = 0
    while number < 20 or not exists(Path(str(request.input))):
        number += 1
        yield f"{number} "
        await asyncio.sleep(0.005)


def exists(file: Path) -> bool:
    return file.exists()
