"""A disk that is full for real: the database's tables are on a file system of a few megabytes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.faults.servers import BreakablePostgres
from tests.faults.test_postgres import counting
from tests.faults.viewers import Viewer, counted
from tests.support.cluster import Cluster
from tests.support.databases import execute, named_database
from tests.support.logbook import until

from baton.db.postgres import translated
from baton.doctor.examination import examine
from baton.doctor.finding import Thresholds
from baton.errors import Unavailable

MEGABYTES = 64


class SmallDisk:
    """The file system of one database."""

    def __init__(self, folder: Path) -> None:
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Take all the room that is left."""
        with contextlib.suppress(OSError), self._filler.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        """Give it back."""
        self._filler.unlink()


@pytest.fixture
def mounted() -> Iterator[Path]:
    """A folder on a file system of its own."""
    folder = Path(tempfile.mkdtemp(prefix="baton-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m,mode=755", "tmpfs", str(folder)]
    try:
        if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("only root may mount a small file system, and not everywhere")
        yield folder
        subprocess.run(["umount", "-l", str(folder)], check=True)
    finally:
        folder.rmdir()


@pytest.fixture
def tablespace(mounted: Path, breakable: BreakablePostgres) -> Path:
    """A folder there that is the server's."""
    folder = mounted / "data"
    folder.mkdir()
    shutil.chown(folder, breakable.data.owner())
    return folder


@pytest.fixture
async def small_disk(tablespace: Path, breakable: BreakablePostgres) -> AsyncIterator[tuple[SmallDisk, str]]:
    """A disk, and the DSN of a database on it."""
    await execute(breakable.dsn, f"CREATE TABLESPACE small LOCATION '{tablespace}'")
    await execute(breakable.dsn, "CREATE DATABASE baton_small TEMPLATE baton_template TABLESPACE small")
    yield SmallDisk(tablespace.parent), named_database(breakable.dsn, "baton_small")
    await execute(breakable.dsn, "DROP DATABASE baton_small WITH (FORCE)")
    await execute(breakable.dsn, "DROP TABLESPACE small")


async def findings(cluster: Cluster) -> set[str]:
    diagnosis = await examine(cluster.settings(), thresholds=Thresholds(sample_seconds=0))
    assert diagnosis.complete
    return {item.code for item in diagnosis.findings}


async def test_a_full_disk_is_reported_everywhere_and_recovered_from(
    small_disk: tuple[SmallDisk, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.pod.database_watch.LOOK_SECONDS", 0.1)
    disk, dsn = small_disk
    async with Cluster(dsn) as cluster:
        pod = await cluster.pod()
        await cluster.worker({"replay": counting})  # type: ignore[dict-item]
        viewer = Viewer(cluster.client, pod.url, await cluster.create(pod, input=200))
        await viewer.has(1)

        async def disk_full() -> bool:
            answer = await cluster.client.get(f"{pod.url}/readyz")
            assert (answer.status_code, answer.json()["status"]) == (200, "ready")
            found: bool = answer.json()["disk_full"]
            return found

        assert not await disk_full()
        assert "disk" in await findings(cluster)
        disk.fill()
        await until(disk_full)
        assert "disk_full" in await findings(cluster)

        async def refused() -> bool:
            # What fits into pages that are there is taken.
            answer = await cluster.client.post(f"{pod.url}/v1/streams", json={"input": "x" * 8000})
            if answer.status_code == 201:
                return False
            assert answer.status_code == 503, answer.text
            assert "no room" in answer.json()["detail"]
            assert int(answer.headers["retry-after"]) >= 1
            return True

        await until(refused)
        # What is there can be read.
        assert (await cluster.client.get(f"{pod.url}/v1/streams")).status_code == 200
        disk.free()

        async def has_room() -> bool:
            return not await disk_full()

        await until(has_room)
        await cluster.create(pod, input=1)
        assert (await viewer.end())["status"] == "completed"
        assert viewer.text == counted(200)
        assert "disk" in await findings(cluster)


async def test_a_full_disk_error_is_noticed_at_once(cluster: Cluster) -> None:
    pod = await cluster.pod()
    with pytest.raises(Unavailable, match="no room") as caught:
        async with translated(pod.shard.pool), pod.shard.pool.acquire() as connection:
            await connection.execute("DO $$ BEGIN RAISE disk_full; END $$")
    assert caught.value.operator == "the database's disk is full"
    assert (await cluster.client.get(f"{pod.url}/readyz")).json()["disk_full"] is True
