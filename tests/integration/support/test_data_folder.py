"""The data of tests' servers."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from tests.support.data_folder import data_folder
from tests.support.logbook import DEADLINE_SECONDS, until

HOLDS_ONE = """
from tests.support.data_folder import data_folder
with data_folder() as folder:
    print(folder, flush=True)
    input()
"""


def test_the_folder_is_deleted_at_the_end(tmp_path: Path) -> None:
    with data_folder(tmp_path) as folder:
        (folder / "file").touch()
        assert folder.parent == tmp_path
    assert not folder.exists()


@pytest.mark.slow
async def test_the_folder_and_its_server_go_when_the_process_is_killed() -> None:
    root = Path(__file__).parents[3]
    holder = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLDS_ONE, cwd=root, stdin=PIPE, stdout=PIPE)
    server = await asyncio.create_subprocess_exec("sleep", "600")
    try:
        assert holder.stdout is not None
        folder = Path((await holder.stdout.readline()).decode().strip())
        (folder / "data").mkdir()
        (folder / "data" / "postmaster.pid").write_text(f"{server.pid}\n{folder}/data\n")
        holder.kill()
        assert await asyncio.wait_for(server.wait(), DEADLINE_SECONDS) == -signal.SIGQUIT
        await until(lambda: not folder.exists())
    finally:
        for process in (holder, server):
            if process.returncode is None:
                process.kill()
            await process.wait()
