"""A pod inside somebody else's application."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from tests.support.cluster import Cluster, echo, serving
from tests.support.follower import frames_after, texts

from baton.app import create_app


async def hello(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def test_an_app_mounted_under_a_prefix_serves_as_on_its_own(cluster: Cluster) -> None:
    baton_app = create_app(cluster.settings(pod_name="mounted"))

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with baton_app.router.lifespan_context(baton_app):
            yield

    outer = Starlette(routes=[Route("/", hello), Mount("/ai/answers", baton_app)], lifespan=lifespan)
    await cluster.worker({"replay": echo})
    async with serving(outer, baton_app=baton_app) as url:
        assert (await cluster.client.get(url)).text == "hello"
        created = await cluster.client.post(f"{url}/ai/answers/v1/streams", json={"input": ["a", "b"]})
        stream = created.json()
        prefix = f"{url}/ai/answers"
        assert stream["events_url"] == f"/ai/answers/v1/streams/{stream['id']}/events"
        assert created.headers["location"] == f"/ai/answers/v1/streams/{stream['id']}"
        frames = await frames_after(cluster.client, prefix, stream["id"])
        assert texts(frames) == ["a", "b"]
        assert await frames_after(cluster.client, prefix, stream["id"], 1) == frames[1:]
        listed = (await cluster.client.get(f"{prefix}/v1/streams?limit=1")).json()
        assert listed["data"][0]["events_url"] == stream["events_url"]
        answer = await cluster.client.get(f"{prefix}/v1/streams/x")
        assert (answer.status_code, answer.json()["code"]) == (404, "stream_not_found")
        assert answer.headers["x-baton-pod"] == "mounted"


async def noted(request: Request, call_next: RequestResponseEndpoint) -> Response:
    answer = await call_next(request)
    answer.headers["x-noted"] = "yes"
    return answer


async def test_a_middleware_that_wraps_bodies_stays_around_them(cluster: Cluster) -> None:
    app = create_app(cluster.settings())
    app.add_middleware(BaseHTTPMiddleware, dispatch=noted)
    await cluster.worker({"replay": echo})
    async with serving(app) as url:
        created = await cluster.client.post(f"{url}/v1/streams", json={"input": ["a", "b"]})
        assert created.headers["x-noted"] == "yes"
        assert texts(await frames_after(cluster.client, url, created.json()["id"])) == ["a", "b"]


async def test_without_its_lifespan_the_log_reports_what_is_missing(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    baton_app = create_app(cluster.settings())
    outer = Starlette(routes=[Mount("/ai", baton_app)])
    started = create_app(cluster.settings())
    async with started.router.lifespan_context(started), serving(outer, baton_app=started) as url:
        for method, path in (("GET", "streams"), ("POST", "streams"), ("GET", f"streams/{uuid4()}/events")):
            answer = await cluster.client.request(method, f"{url}/ai/v1/{path}", json={"input": 1})
            assert answer.status_code == 503
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["detail"] == "The service has not been started. Try again in a moment."
            assert "that app's lifespan must enter `baton_app.router.lifespan_context" in caplog.text
            caplog.clear()
