"""All dialects open a stream in one way (`baton.api.opening`)."""

from __future__ import annotations

import asyncio
import signal
from typing import Any
from uuid import UUID

import pytest
from tests.support.cluster import Cluster, echo
from tests.support.logbook import pod_waits_for_the_log, until
from tests.support.processes import SERVES, environment, running

SAID = {"role": "user", "content": "?"}
CREATES: dict[str, tuple[str, dict[str, Any]]] = {
    "responses": ("/v1/responses", {"model": "replay", "input": "?", "stream": True}),
    "chat": ("/v1/chat/completions", {"model": "replay", "messages": [SAID], "stream": True}),
}


async def test_head_has_the_headers_of_get_in_each_dialect(cluster: Cluster, subtests: pytest.Subtests) -> None:
    pod = await cluster.pod()
    await cluster.worker({"replay": echo})
    created = await cluster.client.post(f"{pod.url}/v1/streams", json={"input": "?", "metadata": {"chat": "c"}})
    stream_id = created.json()["id"]
    digits = stream_id.replace("-", "")
    paths = {
        "native": (f"/v1/streams/{stream_id}/events", {}),
        "text": (f"/v1/streams/{stream_id}/events", {"accept": "text/plain"}),
        "responses": (f"/v1/responses/resp_{digits}?stream=true", {}),
        "aisdk": (f"/v1/ai-sdk/chat/run_{digits}/stream", {}),
        **{name: (f"/v1/langgraph/threads/c/runs/{stream_id}/{name}", {}) for name in ("stream", "join")},
    }
    for dialect, (path, headers) in paths.items():
        with subtests.test(dialect):
            got = await cluster.client.get(pod.url + path, headers=headers)
            head = await cluster.client.head(pod.url + path, headers=headers)
            assert (head.status_code, head.content) == (200, b"")
            left_out = {"date", "x-request-id", "transfer-encoding"}
            assert [pair for pair in head.headers.items() if pair[0] not in left_out] == [
                pair for pair in got.headers.items() if pair[0] not in left_out
            ]
    assert pod.metric("baton_subscribers") == 0
    for path, headers in paths.values():
        unknown = path.replace(stream_id, str(UUID(int=1))).replace(digits, UUID(int=1).hex)
        assert (await cluster.client.head(pod.url + unknown, headers=headers)).status_code == 404, path


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["responses", pytest.param("chat", marks=pytest.mark.slow)])
async def test_a_create_whose_pod_shuts_down_is_not_repeated(cluster: Cluster, dialect: str) -> None:
    """Its stream exists by then: OpenAI's clients retry other errors of 500 and above, and would create another."""
    path, body = CREATES[dialect]
    env = environment(
        BATON_DATABASE_URL=cluster.dsn, BATON_ALLOW_ANONYMOUS="true", BATON_PORT="0", BATON_DRAIN_SECONDS="0"
    )
    async with running("serve", env=env) as pod, cluster.pool.acquire() as connection:
        url = (await pod.said(SERVES))[2]
        async with connection.transaction():
            # Following it reads the log.
            await connection.execute("LOCK TABLE baton.batch")
            asked = asyncio.create_task(cluster.client.post(url + path, json=body))
            await until(lambda: pod_waits_for_the_log(cluster.pool))
            pod.signal(signal.SIGTERM)
            answer = await asked
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "still_running")
            assert answer.headers["x-should-retry"] == "false"
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 1
