"""CORS by an allow-list: which pages may use a pod, and that they can read whatever it answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from tests.support.cluster import Cluster, RunningPod, echo, serving
from tests.support.logbook import DEADLINE_SECONDS

from baton import api
from baton.app import create_app

PAGE = "https://chat.example.com"
OTHER = "https://evil.example.com"

# What the clients that docs/clients.md names send by themselves.
SENT = (
    *("authorization", "content-type", "accept", "last-event-id", "idempotency-key", "user-agent", "cache-control"),
    *("x-stainless-arch", "x-stainless-lang", "x-stainless-os", "x-stainless-package-version"),
    *("x-stainless-retry-count", "x-stainless-runtime", "x-stainless-runtime-version", "x-stainless-timeout"),
    *("x-stainless-helper-method", "x-stainless-poll-helper", "x-request-id", "traceparent", "baggage", "sentry-trace"),
    *("if-none-match", "stream-seq", "stream-ttl", "stream-expires-at", "stream-closed", "stream-forked-from"),
    *("producer-id", "producer-epoch", "producer-seq"),
    *("x-api-key", "x-auth-scheme", "anthropic-version", "anthropic-beta", "anthropic-dangerous-direct-browser-access"),
    *("anthropic-organization-id", "anthropic-workspace-id", "anthropic-user-profile-id", "x-stainless-helper"),
)


def paths() -> list[str]:
    filled = (getattr(route, "path", "") for route in api.ROUTES)
    return [
        path.replace("{id}", "1").replace("{chat:any}", "c/d").replace("{rest:any}", "/x").replace("{path:any}", "p/q")
        for path in filled
    ]


async def preflight(client: httpx2.AsyncClient, url: str, origin: str, method: str, *names: str) -> httpx2.Response:
    asked = {"origin": origin, "access-control-request-method": method}
    if names:
        asked["access-control-request-headers"] = ",".join(names)
    return await client.options(url, headers=asked)


@pytest.fixture
async def pod(cluster: Cluster) -> RunningPod:
    return await cluster.pod(allowed_origins=f"{PAGE}, https://other.example.com")


async def test_preflights_work_on_every_route(cluster: Cluster, pod: RunningPod) -> None:
    for path in [*paths(), "/nowhere"]:
        for method in ("GET", "POST", "PUT", "DELETE", "HEAD"):
            answer = await preflight(cluster.client, pod.url + path, PAGE, method, *SENT)
            assert answer.status_code == 200, (path, answer.text)
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert answer.headers["access-control-allow-credentials"] == "true"
            assert answer.headers["access-control-max-age"] == "7200"
            assert "x-request-id" in answer.headers
            assert answer.headers["x-content-type-options"] == "nosniff"


async def test_only_listed_origins_methods_and_headers_are_allowed(cluster: Cluster, pod: RunningPod) -> None:
    url = f"{pod.url}/v1/streams"
    for origin, method, name in (
        (OTHER, "POST", "content-type"),
        ("null", "POST", "content-type"),
        (f"{PAGE}.evil.example.com", "POST", "content-type"),
        (PAGE.upper(), "POST", "content-type"),
        (PAGE, "PATCH", "content-type"),
        (PAGE, "POST", "x-anything"),
    ):
        answer = await preflight(cluster.client, url, origin, method, name)
        assert answer.status_code == 400
        assert answer.headers.get("access-control-allow-origin") in {None, PAGE}
    answer = await cluster.client.get(url, headers={"origin": OTHER})
    assert "access-control-allow-origin" not in answer.headers
    assert "Origin" in answer.headers["vary"]


async def test_a_page_can_read_every_response(cluster: Cluster, pod: RunningPod) -> None:
    await cluster.worker({"replay": echo})
    client = cluster.client
    page = {"origin": PAGE}

    def readable(answer: httpx2.Response, status: int) -> None:
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["vary"] == "Origin"
        exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
        known = {"content-type", "content-length", "cache-control", "date", "vary", "x-accel-buffering", "connection"}
        secret = {"referrer-policy", "x-content-type-options", "content-security-policy"}
        for name in answer.headers:
            rest = name.startswith(("access-control-", "cross-origin-", "transfer-")) or name in known | secret
            assert rest or name in exposed, name

    readable(await client.get(f"{pod.url}/nowhere", headers=page), 404)
    readable(await client.put(f"{pod.url}/v1/streams", headers=page), 405)
    readable(await client.post(f"{pod.url}/v1/streams", headers=page), 400)
    readable(await client.post(f"{pod.url}/v1/responses", headers=page), 400)
    created = await client.post(f"{pod.url}/v1/streams", json={"input": ["a"]}, headers=page)
    readable(created, 201)
    events = f"{pod.url}/v1/streams/{created.json()['id']}/events"
    readable(await client.get(events, headers=page), 200)
    readable(await client.get(events, headers=page | {"last-event-id": "2"}), 204)
    address = f"{pod.url}/v1/stream/{created.json()['id']}"
    readable(await client.head(address, headers=page), 200)
    readable(await client.get(address, headers=page), 200)
    readable(await client.get(f"{address}?offset=-1&live=sse", headers=page), 200)
    readable(await client.get(f"{address}?offset=-1&live=long-poll", headers=page), 200)
    readable(await client.get(f"{pod.url}/v1/stream/none", headers=page), 404)
    sent = {"messages": [{"role": "user", "parts": [{"type": "text", "text": "hi"}]}]}
    readable(await client.post(f"{pod.url}/v1/ai-sdk/chat", json=sent, headers=page), 200)

    await cluster.pool.execute("ALTER TABLE baton.stream RENAME TO gone")
    try:
        readable(await client.get(f"{pod.url}/v1/streams", headers=page), 500)
        readable(await client.get(f"{pod.url}/v1/responses/{created.json()['id']}", headers=page), 500)
    finally:
        await cluster.pool.execute("ALTER TABLE baton.gone RENAME TO stream")
    connection = await client.get(events, headers=page)
    await asyncio.wait_for(pod.pod.drain(), DEADLINE_SECONDS)
    # An empty stream with a time to come back, which an EventSource of another origin must be able to read, too.
    retry = await client.get(events, headers=page)
    assert b"retry:" in retry.content
    readable(retry, 200)
    assert connection.status_code == 200


async def test_by_default_no_page_of_another_origin_is_allowed(cluster: Cluster) -> None:
    pod = await cluster.pod()
    answer = await preflight(cluster.client, f"{pod.url}/v1/streams", PAGE, "POST")
    assert answer.status_code == 405
    plain = await cluster.client.get(f"{pod.url}/v1/streams", headers={"origin": PAGE})
    for one in (answer, plain):
        assert not any(name.startswith("access-control-") for name in one.headers)
        assert one.headers["cross-origin-resource-policy"] == "same-origin"


async def test_a_star_allows_all_origins_without_cookies(cluster: Cluster) -> None:
    pod = await cluster.pod(allowed_origins="*")
    asked = await preflight(cluster.client, f"{pod.url}/v1/streams", OTHER, "POST", "authorization")
    plain = await cluster.client.get(f"{pod.url}/v1/streams", headers={"origin": OTHER, "cookie": "a=b"})
    for answer in (asked, plain):
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


async def test_an_application_can_send_its_own_headers(cluster: Cluster) -> None:
    pod = await cluster.pod(allowed_origins=PAGE, allowed_headers="X-CSRF-Token, x-app-version,")
    url = f"{pod.url}/v1/streams"
    answer = await preflight(cluster.client, url, PAGE, "POST", "content-type", "x-app-version", "x-csrf-token")
    assert answer.status_code == 200
    allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
    assert {"x-csrf-token", "x-app-version", *SENT} <= set(allowed)
    for origin, name in ((PAGE, "x-anything"), (OTHER, "x-csrf-token")):
        assert (await preflight(cluster.client, url, origin, "POST", name)).status_code == 400


@pytest.mark.parametrize("origins", [PAGE, "*"])
async def test_a_star_allows_all_headers_by_their_names(cluster: Cluster, origins: str) -> None:
    """Browsers take a literal `*` neither with cookies nor for `Authorization`."""
    pod = await cluster.pod(allowed_origins=origins, allowed_headers="*")
    answer = await preflight(cluster.client, f"{pod.url}/v1/streams", PAGE, "POST", "authorization", "x-anything")
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-headers"] == "authorization,x-anything"
    assert answer.headers.get("access-control-allow-credentials") == ("true" if origins == PAGE else None)


@pytest.mark.parametrize(("origins", "status"), [(PAGE, 200), ("*", 400)])
async def test_only_listed_pages_reach_a_private_network(cluster: Cluster, origins: str, status: int) -> None:
    pod = await cluster.pod(allowed_origins=origins)
    asked = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-private-network": "true",
    }
    answer = await cluster.client.options(f"{pod.url}/v1/streams", headers=asked)
    assert answer.status_code == status
    assert answer.headers.get("access-control-allow-private-network") == ("true" if status == 200 else None)


async def test_cross_origin_access_works_where_the_app_is_mounted(cluster: Cluster) -> None:
    baton_app = create_app(cluster.settings(allowed_origins=PAGE))

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with baton_app.router.lifespan_context(baton_app):
            yield

    # A name of the mount, and routes of the same names, are what `url_for` would stumble over.
    outer = Starlette(routes=[Mount("/ai", baton_app, name="baton")], lifespan=lifespan)
    async with serving(outer, baton_app=baton_app) as url:
        answer = await preflight(cluster.client, f"{url}/ai/v1/streams", PAGE, "POST", "content-type")
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
        created = await cluster.client.post(f"{url}/ai/v1/streams", json={"input": 1}, headers={"origin": PAGE})
        assert (created.status_code, created.headers["access-control-allow-origin"]) == (201, PAGE)
        assert created.headers["location"].startswith("/ai/v1/streams/")
