"""NATS with TLS, and with a file of credentials."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tests.support.certificates import make_certificate
from tests.support.cluster import Cluster, RunningPod, Tap
from tests.support.follower import following
from tests.support.logbook import until
from tests.support.nats_accounts import accounts

from baton.chaos.nats_server import NatsServer
from baton.hints.transport import HintState

# Longer than the test: what arrives came over NATS.
NEVER = {"log_poll_seconds": 60, "queue_poll_seconds": 60}


async def relay(cluster: Cluster, pod: RunningPod, **settings: object) -> None:
    """Check that events reach a viewer over NATS alone."""
    tap = Tap()
    worker = await cluster.worker({"tap": tap}, **NEVER, **settings)
    await until(lambda: worker.metrics.registry.get_sample_value("baton_worker_listener_up") == 1)
    await until(lambda: pod.shard.hints.state is HintState.LISTENING)
    stream_id = await cluster.create(pod, generator="tap")
    async with following(cluster.client, pod.url, stream_id) as viewer:
        for text in ("one", "two"):
            tap.let(text)
            assert (await viewer.next_event())["delta"] == text


async def test_hints_travel_by_tls_if_the_certificate_is_trusted(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    make_certificate(certificate, key)
    async with NatsServer.running("--tls", "--tlscert", str(certificate), "--tlskey", str(key)) as server:
        url = f"tls://localhost:{server.port}"
        stranger = await cluster.pod(hints_url=url, **NEVER)
        await until(lambda: "CERTIFICATE_VERIFY_FAILED" in caplog.text)
        assert stranger.shard.hints.state is HintState.DEGRADED
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        await relay(cluster, await cluster.pod(hints_url=url, **NEVER), hints_url=url)


async def test_credentials_give_access_to_the_subjects_of_baton(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    configuration, credentials = accounts(tmp_path, publish="baton.>", subscribe="baton.>")
    async with NatsServer.running("--config", str(configuration)) as server:
        stranger = await cluster.pod(hints_url=server.url, **NEVER)
        await until(lambda: "Authorization Violation" in caplog.text)
        assert stranger.shard.hints.state is HintState.DEGRADED
        with_file = {"hints_url": server.url, "hints_credentials": str(credentials)}
        await relay(cluster, await cluster.pod(**with_file, **NEVER), **with_file)
        assert credentials.read_text().splitlines()[1] not in caplog.text
