"""Migrating under the release before: its pod and its worker, as processes, go on while the schema changes."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.cluster import Cluster
from tests.follower import frames_after, numbers, parse, texts
from tests.logbook import connected, until
from tests.processes import SERVES, Running, environment, running
from tests.revisions import history_with

from baton.schema.migrate import migrate, revision_of

PROJECT = Path(__file__).parent.parent.parent
# The last commit whose code works with revision 0002.
COMMIT, BEFORE = "a579c8d", "0002"
MAIN = "from baton.cli import main; main()"
# It counts until a file is there.
COUNTING = """
import asyncio
from pathlib import Path

async def count(request):
    number = 0
    while number < 3 or not Path(request.input).exists():
        number += 1
        yield f"{number} "
        await asyncio.sleep(0.005)
"""
# What later revisions may want of a live database, and those up to 0007 do not.
CHANGES = (
    'op.execute("ALTER TABLE baton.stream ADD COLUMN extra integer")',
    'ddl.add_check("batch", "ck_batch_epoch", "epoch >= 0")',
    'ddl.validate("batch", "ck_batch_epoch")',
    'ddl.create_log_index("ix_batch_epoch", "(epoch)")',
    'ddl.drop_log_index("ix_batch_epoch")',
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the release before, and a generator."""
    folder = tmp_path_factory.mktemp("before")
    archive = subprocess.run(["git", "archive", COMMIT, "app"], cwd=PROJECT, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(f"Commit {COMMIT}, the code before, is not here: fetch the whole history.")
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    (folder / "app" / "counting.py").write_text(COUNTING)
    return folder / "app"


@contextlib.asynccontextmanager
async def previous(before: Path, dsn: str, folder: Path) -> AsyncIterator[tuple[str, list[Running]]]:
    """A pod and a worker of the release before; yield the pod's address and both processes."""
    env = environment(
        PYTHONPATH=str(before),
        BATON_DATABASE_URL=dsn,
        BATON_ALLOW_ANONYMOUS="true",
        BATON_PORT="0",
        BATON_GENERATORS="count=counting:count",
        BATON_PARTITION_DAYS_AHEAD="1",
    )
    command = Path(sys.executable)
    async with (
        running("-c", MAIN, "serve", env=env, command=command, cwd=folder) as pod,
        running("-c", MAIN, "worker", env=env, command=command, cwd=folder) as worker,
    ):
        yield (await pod.said(SERVES))[2], [pod, worker]


async def test_the_release_before_streams_on_while_a_long_transaction_blocks_and_after(
    before: Path, empty_dsn: str, tmp_path: Path
) -> None:
    history = history_with(tmp_path, *CHANGES)
    end = tmp_path / "end"
    said: list[str] = []
    await migrate(empty_dsn, days_ahead=1, to=BEFORE)
    async with Cluster(empty_dsn) as cluster, previous(before, empty_dsn, tmp_path) as (url, processes):

        async def follow() -> list[bytes]:
            body = {"generator": "count", "input": str(end)}
            stream = (await cluster.client.post(f"{url}/v1/streams", json=body)).json()
            return await frames_after(cluster.client, url, stream["id"])

        async def keep_creating() -> None:
            while not ended(end):
                followed.append(asyncio.create_task(follow()))
                await asyncio.sleep(0.1)

        followed = [asyncio.create_task(follow()) for _ in range(10)]
        async with connected(empty_dsn) as blocking, connected(empty_dsn) as looking:
            await until(lambda: looking.fetchval("SELECT count(*) >= 10 FROM baton.batch WHERE last_seq > 5"))
            await blocking.execute("BEGIN; LOCK TABLE baton.stream IN SHARE UPDATE EXCLUSIVE MODE")
            creating = asyncio.create_task(keep_creating())
            migrating = asyncio.create_task(migrate(empty_dsn, days_ahead=1, history=history, say=said.append))
            # Nobody else may vacuum or change the table, and then somebody reads it, and 0011 wants it for itself.
            for revision in ("0004", "0011"):
                await until(lambda: tries(said, revision) >= 2 or migrating.done())  # noqa: B023
                await blocking.execute("COMMIT; BEGIN; SELECT FROM baton.stream")
            await blocking.execute("COMMIT")
            await migrating
            end.touch()
            await creating
        for frames in await asyncio.gather(*followed):
            assert parse(frames[-1])["status"] == "completed"
            assert numbers(frames) == list(range(1, len(frames) + 1))
            assert texts(frames) == [f"{number} " for number in range(1, len(frames))]
        assert len(followed) > 20
        for process in processes:
            assert [line for line in process.lines if " INFO " not in line] == []
    assert await revision_of(empty_dsn) == history.ids[-1]


def tries(said: list[str], revision: str) -> int:
    return sum(line.startswith(f"Revision {revision} waited") for line in said)


def ended(end: Path) -> bool:
    return end.exists()
