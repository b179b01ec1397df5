"""What every answer carries, and that errors tell what they should, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import asyncpg
import httpx2
import pytest
from openai import AsyncOpenAI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount
from tests.support.cluster import Cluster, RunningPod, Tap, serving
from tests.support.doors import DOORS
from tests.support.logbook import until

from baton import api
from baton.api import problems
from baton.api.problems import SECURITY_HEADERS
from baton.app import create_app
from baton.codes import ENDS, REFUSALS
from baton.errors import GENERATOR_FAULT, GenerationError, Unavailable
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded

SECRET = "postgresql://user:hunter2@10.1.2.3/db /etc/secret.py SELECT secret FROM baton.stream"
SIGNS = ("hunter2", "postgresql", "SELECT", "Traceback", "asyncpg", ".py", "baton.stream", "Error(", "relation")

# Each asks the database for something.
REQUESTS: list[tuple[str, str, Any]] = [
    ("POST", "/v1/streams", {"input": 1}),
    ("GET", "/v1/streams", None),
    ("GET", "/v1/streams/{id}", None),
    ("GET", "/v1/streams/{id}?wait=1", None),
    ("GET", "/v1/streams/{id}/events", None),
    ("POST", "/v1/streams/{id}/cancel", None),
    ("DELETE", "/v1/streams/{id}", None),
    ("POST", "/v1/responses", {"input": "x"}),
    ("GET", "/v1/responses/{id}", None),
    ("POST", "/v1/responses/{id}/cancel", None),
    ("GET", "/v1/responses/{id}/input_items", None),
    ("DELETE", "/v1/responses/{id}", None),
    ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ("POST", "/v1/ai-sdk/chat", {"messages": [{"role": "user", "parts": [{"type": "text", "text": "x"}]}]}),
    ("GET", "/v1/ai-sdk/chat/c/stream", None),
    ("POST", "/v1/ai-sdk/chat/c/stop", None),
    *(("POST", *door.creating()) for door in DOORS.values()),
    *(("GET", f"/v1/langgraph/threads/c{what}", None) for what in ("", "/state", "/runs", "/runs/{id}")),
    *(("POST", f"/v1/ag-ui/replay/runs/{{id}}/{what}", None) for what in ("connect", "stop")),
    ("GET", "/v1/ai-sdk/v4/chat?chatId=c", None),
]


@pytest.fixture
async def pod(cluster: Cluster) -> RunningPod:
    return await cluster.pod()


async def fails(request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
    yield "some"
    if request.input == "said":
        raise GenerationError("quota", "You have used it up.")
    if request.input == "postgres":
        raise asyncpg.UndefinedTableError(SECRET)
    raise RuntimeError(SECRET) from OSError(SECRET)


# Pages, which have scripts or styles of their own, and hold nothing that may not be kept; and what other sites load.
DIFFERENT = {
    ("/client.js", "cross-origin-resource-policy"),
    ("/errors", "content-security-policy"),
    ("/console", "content-security-policy"),
    ("/console", "cache-control"),
}


async def test_every_answer_has_the_security_headers(cluster: Cluster, pod: RunningPod) -> None:
    tap = Tap()
    await cluster.worker({"replay": tap})
    stream_id = await cluster.create(pod)
    paths = [
        getattr(route, "path", "").replace("{id}", stream_id) for route in api.ROUTES if "events" not in str(route)
    ]
    for path in [*paths, "/nowhere", f"/v1/streams/{stream_id}"]:
        for method in ("GET", "HEAD", "OPTIONS", "DELETE", "PATCH"):
            if method == "DELETE" and path.endswith(stream_id):
                continue
            answer = await cluster.client.request(method, pod.url + path)
            for name, value in SECURITY_HEADERS.items():
                if (path, name) not in DIFFERENT:
                    assert answer.headers.get_list(name) == [value], (method, path, name)
            assert answer.headers["x-baton-pod"] == pod.name
    url = f"{pod.url}/v1/streams/{stream_id}/events"
    for accept in ("text/event-stream", "text/plain"):
        async with cluster.client.stream("GET", url, headers={"accept": accept}) as streamed:
            told = streamed.headers
            assert {name: told.get_list(name) for name in SECURITY_HEADERS} == {
                name: [value if name != "cache-control" else "no-store, no-transform"]
                for name, value in SECURITY_HEADERS.items()
            }


async def test_a_problem_links_to_its_explanation(cluster: Cluster, pod: RunningPod) -> None:
    problem = (await cluster.client.get(f"{pod.url}/v1/streams/x")).json()
    assert problem.keys() == {"type", "title", "status", "detail", "code", "request_id"}
    path, _, code = problem["type"].partition("#")
    assert code == problem["code"] == "stream_not_found"
    page = await cluster.client.get(pod.url + path)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for known in (*REFUSALS, *ENDS):
        assert f'id="{known.code}"' in page.text
    assert "`" not in page.text
    assert "style-src 'sha256-" in page.headers["content-security-policy"]


async def test_the_link_works_wherever_the_app_is_mounted(cluster: Cluster) -> None:
    baton_app = create_app(cluster.settings())

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with baton_app.router.lifespan_context(baton_app):
            yield

    mounts = [Mount("/a b", routes=[Mount("/c", baton_app, name="baton")], name="errors")]
    async with serving(Starlette(routes=mounts, lifespan=lifespan), baton_app=baton_app) as url:
        for path in ("v1/streams/x", "nowhere"):
            link = (await cluster.client.get(f"{url}/a%20b/c/{path}")).json()["type"]
            assert link.startswith("/a%20b/c/errors#")
            assert (await cluster.client.get(url + link.partition("#")[0])).status_code == 200
        servers = (await cluster.client.get(f"{url}/a%20b/c/openapi.json")).json()["servers"]
        assert servers == [{"url": "/a%20b/c"}]


async def test_the_allow_header_has_all_methods_of_a_path(cluster: Cluster, pod: RunningPod) -> None:
    answer = await cluster.client.put(f"{pod.url}/v1/streams")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")
    answer = await cluster.client.request("OPTIONS", f"{pod.url}/v1/streams/x")
    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, GET, HEAD")


async def test_database_problems_expose_nothing_internal(cluster: Cluster, pod: RunningPod) -> None:
    stream_id = await cluster.create(pod)
    await cluster.pool.execute("ALTER TABLE baton.stream RENAME TO gone")
    try:
        for method, path, body in REQUESTS:
            url = pod.url + path.replace("{id}", stream_id)
            answer = await cluster.client.request(method, url, json=body, headers={"x-request-id": "r-1"})
            assert answer.status_code == 500, (method, path, answer.text)
            found = answer.json()
            error = found.get("error") or found
            assert error.get("code", error.get("details", {}).get("error_code")) == "internal_error", (path, found)
            assert answer.headers["x-request-id"] == "r-1"
            silent(answer.text + str(answer.headers))
    finally:
        await cluster.pool.execute("ALTER TABLE baton.gone RENAME TO stream")


@pytest.mark.parametrize("given", ["python", "postgres"])
async def test_an_unexpected_generator_exception_is_not_sent_to_clients(
    cluster: Cluster, pod: RunningPod, given: str
) -> None:
    await cluster.worker({"replay": fails})
    stream_id = await cluster.create(pod, input=given)
    texts = [await ended(cluster.client, pod, stream_id)]
    for path in (
        f"streams/{stream_id}/events",
        f"responses/{stream_id}",
        f"responses/{stream_id}?stream=true",
        f"ai-sdk/chat/run_{stream_id.replace('-', '')}/stream",
    ):
        answer = await cluster.client.get(f"{pod.url}/v1/{path}")
        texts.append(answer.text)
    whole = {"messages": [{"role": "user", "content": given}]}
    texts.append((await cluster.client.post(f"{pod.url}/v1/chat/completions", json=whole)).text)
    for door in DOORS.values():
        path, body = door.creating(said=given)
        whole = body | ({"stream": False} if "stream" in body else {})
        texts.append((await cluster.client.post(pod.url + path, json=whole)).text)
    for text in texts:
        silent(text)
        assert GENERATOR_FAULT in text


async def test_a_generators_message_for_the_client_is_sent(cluster: Cluster, pod: RunningPod) -> None:
    await cluster.worker({"replay": fails})
    told = await ended(cluster.client, pod, await cluster.create(pod, input="said"))
    assert '"error":{"code":"quota","message":"You have used it up."}' in told


async def test_openais_sdk_shows_the_id_of_the_request(pod: RunningPod) -> None:
    async with AsyncOpenAI(base_url=f"{pod.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(Exception, match="no stream") as refused:
            await client.responses.retrieve("resp_x", extra_headers={"x-request-id": "sdk-1"})
        assert refused.value.request_id == "sdk-1"  # type: ignore[attr-defined]
        models = await client.models.list(extra_headers={"x-request-id": "sdk-2"})
        assert models._request_id == "sdk-2"


async def ended(client: httpx2.AsyncClient, pod: RunningPod, stream_id: str) -> str:
    url = f"{pod.url}/v1/streams/{stream_id}"

    async def has_ended() -> bool:
        return (await client.get(f"{url}?wait=5")).json()["finished_at"] is not None

    await until(has_ended)
    return (await client.get(url)).text


def test_a_long_path_is_truncated_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    request = Request({"type": "http", "method": "GET", "path": "/" + "a" * 20_000, "headers": []})
    problems.note(request, Unavailable("The database does not answer."))
    (record,) = caplog.records
    assert len(record.getMessage()) < 300


def silent(text: str) -> None:
    for sign in SIGNS:
        assert sign not in text, (sign, text)
