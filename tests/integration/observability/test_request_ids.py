"""The id of a request: whose it is, and where it is seen."""

from __future__ import annotations

import asyncio
import logging
import re

import pytest
from tests.support.cluster import Cluster, echo
from tests.support.logbook import until

from baton.observability.log_context import ContextFilter
from baton.observability.request_ids import accepted

MADE = re.compile(r"[0-9a-f]{32}")
PATHS = ("/v1/streams", "/v1/streams/x", "/v1/responses/x", "/nowhere", "/healthz", "/errors", "/openapi.json")


@pytest.mark.parametrize("given", ["a", "x" * 128, "A-Z.0_9:b", "0192e4a1-7f6c-7000-8000-000000000001"])
def test_a_valid_id_from_the_client_is_kept(given: str) -> None:
    assert accepted(given) == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", "ä", "a\n", "a\x1b[0m", "<b>", "a,b", "a;b=1"])
def test_any_other_id_is_replaced(given: str | None) -> None:
    assert MADE.fullmatch(accepted(given))
    assert accepted(given) != accepted(given)


async def test_every_response_has_the_id(cluster: Cluster) -> None:
    pod = await cluster.pod()
    for path in PATHS:
        for method in ("GET", "HEAD", "OPTIONS", "PUT"):
            answer = await cluster.client.request(method, pod.url + path, headers={"x-request-id": "mine-1"})
            assert answer.headers["x-request-id"] == "mine-1", (method, path)
        made = (await cluster.client.get(pod.url + path, headers={"x-request-id": "not mine"})).headers["x-request-id"]
        assert MADE.fullmatch(made)


async def test_a_stream_and_a_problem_have_the_id(cluster: Cluster) -> None:
    pod = await cluster.pod()
    await cluster.worker({"replay": echo})
    given = {"x-request-id": "follow.1", "accept": "text/event-stream"}
    answer = await cluster.client.post(f"{pod.url}/v1/streams", json={"input": ["a"]}, headers=given)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-request-id"] == "follow.1"
    problem = await cluster.client.get(f"{pod.url}/v1/streams/x", headers={"x-request-id": "lost:1"})
    assert problem.json()["request_id"] == problem.headers["x-request-id"] == "lost:1"


async def test_only_lines_of_a_request_have_its_id(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.addFilter(ContextFilter())
    caplog.set_level(logging.INFO, "baton")
    pod = await cluster.pod(write_timeout_seconds=0.3, database_timeout_seconds=2)
    author = await cluster.author()
    await author.write_texts([400] * 20, padding=1000)
    host, port = pod.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    path = f"/v1/streams/{author.id}/events"
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nX-Request-Id: deaf\r\n\r\n".encode())
    # It reads nothing, so it is cut off: by the timer that serves all connections.
    await until(lambda: any("is closed: write_timeout" in record.getMessage() for record in caplog.records))
    writer.close()
    (cut,) = (record for record in caplog.records if "is closed: write_timeout" in record.getMessage())
    assert cut.request_id == "deaf"  # type: ignore[attr-defined]
    del reader

    await cluster.pool.execute("ALTER TABLE baton.stream RENAME TO gone")
    try:
        answer = await cluster.client.get(f"{pod.url}/v1/streams", headers={"x-request-id": "broken"})
    finally:
        await cluster.pool.execute("ALTER TABLE baton.gone RENAME TO stream")
    assert answer.status_code == 500
    (failed,) = (record for record in caplog.records if record.name == "uvicorn.error" and record.exc_info)
    assert failed.request_id == "broken"  # type: ignore[attr-defined]
    logging.getLogger("baton").warning("nobody's")
    assert caplog.records[-1].request_id == "-"  # type: ignore[attr-defined]
