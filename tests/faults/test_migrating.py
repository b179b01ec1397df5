"""Migrations under load: a pod and a worker of an older release keep running while the schema changes."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path
from uuid import UUID

import httpx2
import pytest
from tests.faults.older_releases import BEFORE_WAITS, MAIN, Release, code_of, count, environment_of, exists, started
from tests.support.cluster import Cluster
from tests.support.follower import frames_after, numbers, parse, texts
from tests.support.logbook import connected, until
from tests.support.processes import finished
from tests.support.revisions import history_with

from baton.db.schema_revision import REVISION
from baton.schema.migrate import migrate, revision_of

RELEASES = {
    # The tag `before-layout`, as a full hash because clones may lack tags: the last commit before modules and public
    # names changed. It plays the release before. Move it to the next release, once there is one.
    "before_layout": Release("807fd6de5c38dd587f394ebf9365523ef1cc5f6d", "0020", ("9001",), beside=True),
    "before_waits": BEFORE_WAITS,
    # The last commit whose code works with revision 0002. All revisions that were released after it run here on a
    # database in use: 0004 waits for a session that vacuums or changes the table, 0011 for one that reads it.
    "revision_0002": Release("a579c8d24e17412d6df5d80f6cee779fb5d00222", "0002", ("0004", "0011")),
}
# The releases whose processes may run beside those of today, and take an open stream for one that has ended: the one
# before, and the last commit before external streams.
BEFORE_EXTERNAL_STREAMS = (
    RELEASES["before_layout"],
    Release("64675384cca03571e372cba4ace7a5de05b4a275", "0021", (), beside=True),
)
# As text, and as JSON.
INFO = re.compile(r' INFO |"severity":"INFO"')
# What a later revision may do to a live database.
CHANGES = (
    'op.execute("ALTER TABLE baton.stream ADD COLUMN extra integer")',
    'ddl.add_check("batch", "ck_batch_epoch", "epoch >= 0")',
    'ddl.validate("batch", "ck_batch_epoch")',
    'ddl.create_log_index("ix_batch_epoch", "(epoch)")',
    'ddl.drop_log_index("ix_batch_epoch")',
)

pytestmark = pytest.mark.slow


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest) -> Release:
    return RELEASES[request.param]


@pytest.fixture
def code(release: Release, tmp_path: Path) -> Path:
    return code_of(release, tmp_path)


async def test_an_older_release_keeps_streaming_during_blocked_migrations(
    release: Release, code: Path, empty_dsn: str, tmp_path: Path
) -> None:
    history = history_with(tmp_path, *CHANGES)
    end = tmp_path / "end"
    said: list[str] = []
    await migrate(empty_dsn, days_ahead=1, to=release.revision)
    async with Cluster(empty_dsn) as cluster, started(code, empty_dsn, tmp_path) as (url, processes):
        urls = [url]
        if release.beside:
            await migrate(empty_dsn, days_ahead=1, to=REVISION)  # under the older release, before the first of today's
            urls.append((await cluster.pod(generators={"count": "counting:count"})).url)
            await cluster.worker({"count": count})

        async def follow(number: int, until_file: Path) -> None:
            """Create a stream on one pod, and follow it to its end on the same or another pod."""
            body = {"generator": "count", "input": str(until_file)}
            stream = (await cluster.client.post(f"{urls[number % len(urls)]}/v1/streams", json=body)).json()
            followed.append(await frames_after(cluster.client, urls[number // 2 % len(urls)], stream["id"]))

        async def keep_creating(number: int) -> None:
            while not exists(end):
                await follow(number, tmp_path)
                number += 1

        followed: list[list[bytes]] = []
        long = [asyncio.create_task(follow(number, end)) for number in range(10)]
        async with connected(empty_dsn) as blocking, connected(empty_dsn) as looking:
            await until(lambda: looking.fetchval("SELECT count(*) >= 10 FROM baton.batch WHERE last_seq > 5"))
            if release.beside:
                await until(lambda: looking.fetchval(BOTH_WORK))
            await blocking.execute("BEGIN; LOCK TABLE baton.stream IN SHARE UPDATE EXCLUSIVE MODE")
            short = [asyncio.create_task(keep_creating(number)) for number in range(4)]
            migrating = asyncio.create_task(migrate(empty_dsn, days_ahead=1, history=history, say=said.append))
            # First a session keeps vacuum and changes of the table out, and then a transaction has read the table.
            for revision in release.blocked:
                await until(lambda: tries(said, revision) >= 2 or migrating.done())  # noqa: B023
                ended = len(followed)
                await until(lambda: len(followed) > ended + 8 or any(task.done() for task in short))  # noqa: B023
                await blocking.execute("COMMIT; BEGIN; SELECT FROM baton.stream")
            await blocking.execute("COMMIT")
            await migrating
            end.touch()
            await asyncio.gather(*long, *short)
        for frames in followed:
            assert parse(frames[-1])["status"] == "completed"
            assert numbers(frames) == list(range(1, len(frames) + 1))
            assert texts(frames) == [f"{number} " for number in range(1, len(frames))]
        assert all(tries(said, revision) >= 2 for revision in release.blocked), said
        for process in processes:
            assert [line for line in process.lines if not INFO.search(line)] == []
    assert await revision_of(empty_dsn) == history.ids[-1]


@pytest.mark.parametrize("older", BEFORE_EXTERNAL_STREAMS, ids=lambda item: item.revision)
async def test_external_streams_wait_until_no_older_process_runs(
    older: Release, empty_dsn: str, tmp_path: Path
) -> None:
    code = code_of(older, tmp_path)
    await migrate(empty_dsn, days_ahead=1, to=older.revision)
    async with Cluster(empty_dsn) as cluster, connected(empty_dsn) as looking:
        async with started(code, empty_dsn, tmp_path) as (_, processes):
            await migrate(empty_dsn, days_ahead=1, to=REVISION)
            pod = await cluster.pod()
            await until(lambda: looking.fetchval("SELECT count(*) = 2 FROM baton.pod"))
            for process in processes:  # the pod, and then the worker
                refused = await create_external(cluster, pod.url)
                assert (refused.status_code, refused.json()["code"]) == (503, "older_code_running")
                assert int(refused.headers["retry-after"]) > 0
                assert await looking.fetchval("SELECT oldest_code FROM baton.compatibility") < REVISION
                process.signal(signal.SIGTERM)
                await process.ends()
        await until(lambda: looking.fetchval("SELECT NOT EXISTS (SELECT FROM baton.worker)"))
        created = await create_external(cluster, pod.url)
        assert created.status_code == 201, created.text
        for command in ("serve", "worker"):
            exit_code, _, said = await finished(
                *("-c", MAIN, command), env=environment_of(code, empty_dsn), command=Path(sys.executable), cwd=tmp_path
            )
            assert exit_code not in {0, None}
            assert REVISION in said
        assert (await cluster.client.get(f"{pod.url}/v1/streams/{created.json()['id']}")).json()["status"] == "open"


async def create_external(cluster: Cluster, url: str) -> httpx2.Response:
    return await cluster.client.post(f"{url}/v1/streams", json={"generator": "external"})


async def test_queries_of_the_release_before_use_the_index_of_live_streams(dsn: str) -> None:
    """Its condition is another one, which the one of the index follows from."""
    async with connected(dsn) as connection:
        await connection.execute(
            "INSERT INTO baton.stream (generator, input, on_worker_lost, status, finished_at) "
            "SELECT 'x', 'null', 'fail', 'completed', clock_timestamp() FROM generate_series(1, 5000)"
        )
        await connection.execute("ANALYZE baton.stream")
        first = UUID(int=0)
        for before in (
            "SELECT status FROM baton.stream WHERE tenant = '' AND status IN ('queued', 'running') LIMIT 10",
            "SELECT count(*) FROM baton.stream WHERE status IN ('queued', 'running')",
            f"SELECT id FROM baton.stream WHERE tenant = '' AND status IN ('queued', 'running') AND id >= '{first}'",
        ):
            plan = await connection.fetch(f"EXPLAIN {before}")
            assert "ix_stream_not_ended" in str(plan), plan


# Whether both workers generate: that of the older release and that of today.
BOTH_WORK = "SELECT count(DISTINCT worker_id) = 2 FROM baton.stream WHERE status = 'running'"


def tries(said: list[str], revision: str) -> int:
    return sum(line.startswith(f"Revision {revision} waited") for line in said)
