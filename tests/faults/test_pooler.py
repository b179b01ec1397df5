"""PgBouncer in transaction mode: found at the start, and no trouble where LISTEN goes around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.faults.servers import PGBOUNCER, pgbouncer
from tests.faults.viewers import Viewer
from tests.support.cluster import Cluster, echo

from baton.doctor.examination import examine
from baton.errors import ConfigurationError

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed here")


@pytest.fixture
async def pooler(cluster: Cluster) -> AsyncIterator[str]:
    async with pgbouncer(cluster.dsn) as dsn:
        yield dsn


async def test_a_pooler_is_detected_at_each_start(
    cluster: Cluster, pooler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.db.notification_delivery.DELIVERY_SECONDS", 1)
    lost = r"A notification did not arrive within 1 s.+Set BATON_LISTEN_DATABASE_URL to .+, or BATON_HINTS_URL=poll\."
    # One after the other: what a start leaves in the pooler's sessions must not hide it from the next.
    with pytest.raises(ConfigurationError, match=lost):
        await cluster.pod(database_url=pooler)
    with pytest.raises(ConfigurationError, match=lost):
        await cluster.worker({"replay": echo}, database_url=pooler)


async def test_many_concurrent_streams_arrive_complete_with_a_pooler(
    cluster: Cluster, pooler: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"database_url": pooler, "listen_database_url": cluster.dsn}
    pods = [await cluster.pod(**settings) for _ in range(2)]
    for _ in range(2):
        await cluster.worker({"replay": echo}, flush_interval_milliseconds=1, **settings)
    words = [f"{number} " for number in range(50)]
    ids = await asyncio.gather(*(cluster.create(pods[number % 2], input=words) for number in range(60)))
    viewers = [Viewer(cluster.client, pod.url, stream_id) for stream_id in ids for pod in pods]
    for viewer in viewers:
        assert (await viewer.end())["status"] == "completed"
        assert viewer.text == "".join(words)
    # A statement that was lost would be repeated on a new connection, and only seen here.
    assert [record.message for record in caplog.records if record.levelname != "INFO"] == []


async def test_the_doctor_checks_the_server_behind_a_pooler(cluster: Cluster, pooler: str) -> None:
    diagnosis = await examine(cluster.settings(database_url=pooler, listen_database_url=cluster.dsn))
    assert diagnosis.complete
    codes = {finding.code for finding in diagnosis.findings}
    assert {"notifications", "schema", "partitions", "transaction_ids"} <= codes
    assert "check_failed" not in codes


@pytest.mark.slow
async def test_the_doctor_finds_that_a_pooler_loses_notifications(cluster: Cluster, pooler: str) -> None:
    diagnosis = await examine(cluster.settings(database_url=pooler))
    (lost,) = [finding for finding in diagnosis.findings if finding.code == "notifications_lost"]
    assert "BATON_LISTEN_DATABASE_URL" in lost.advice
    assert diagnosis.complete


async def test_pods_and_workers_that_poll_need_no_way_around_a_pooler(
    cluster: Cluster, pooler: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"database_url": pooler, "hints_url": "poll", "hints_poll_seconds": 0.05}
    pod = await cluster.pod(**settings)
    await cluster.worker({"replay": echo}, **settings)
    words = [f"{number} " for number in range(20)]
    ids = await asyncio.gather(*(cluster.create(pod, input=words) for _ in range(10)))
    for viewer in [Viewer(cluster.client, pod.url, stream_id) for stream_id in ids]:
        assert (await viewer.end())["status"] == "completed"
        assert viewer.text == "".join(words)
    assert [record.message for record in caplog.records if record.levelname != "INFO"] == []
