"""A pod in an application that knows its own users."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import jwt
import pytest
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.routing import Mount
from tests.support.access import SECRETS, TOKEN_KEYS, api_key, bearer, make_key, signed
from tests.support.cluster import Cluster, Tap, serving
from tests.support.doors import DOORS
from tests.support.follower import following

from baton import Caller, ConfigurationError, create_app
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded


class Cookies(AuthenticationBackend):
    """The application's own session: a cookie with the user's name."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        name = conn.cookies.get("session")
        return None if name is None else (AuthCredentials(["user"]), SimpleUser(name))


@dataclass
class Shop:
    """An application with a Baton below /ai, and what its `authenticate` was asked and says."""

    url: str = ""
    asked: list[str] = field(default_factory=list)
    caller: dict[str, Any] = field(default_factory=dict)
    refusal: Exception | None = None

    async def authenticate(self, request: Request) -> Caller | None:
        self.asked.append(request.method)
        if self.refusal is not None:
            raise self.refusal
        if not request.user.is_authenticated:
            return None
        return Caller(**{"tenant": f"user-{request.user.display_name}"} | self.caller)


@contextlib.asynccontextmanager
async def shop(cluster: Cluster, **given: Any) -> AsyncIterator[Shop]:
    own = Shop()
    settings = cluster.settings(**{"allow_anonymous": False, "token_keys": TOKEN_KEYS} | given)
    baton_app = create_app(settings, authenticate=own.authenticate)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with baton_app.router.lifespan_context(baton_app):
            yield

    middleware = [Middleware(AuthenticationMiddleware, backend=Cookies())]
    app = Starlette(routes=[Mount("/ai", baton_app)], middleware=middleware, lifespan=lifespan)
    async with serving(app, baton_app=baton_app) as url:
        own.url = f"{url}/ai"
        yield own


def user(name: str) -> dict[str, str]:
    return {"cookie": f"session={name}"}


CREATES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/streams", {"input": "?"}),
    ("/v1/responses", {"input": "?", "background": True}),
    ("/v1/chat/completions", {"model": "replay", "messages": [{"role": "user", "content": "?"}]}),
    *(door.creating() for door in DOORS.values()),
    ("/v1/ai-sdk/chat", {"messages": [{"role": "user", "parts": [{"type": "text", "text": "?"}]}]}),
]


async def test_each_user_has_a_tenant_in_every_dialect_and_sees_no_other(cluster: Cluster) -> None:
    seen: list[str] = []

    async def note(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        seen.append(request.tenant)
        yield "."

    await cluster.worker({"replay": note})
    async with shop(cluster) as own:
        for path, body in CREATES:
            created = await cluster.client.post(own.url + path, json=body, headers=user("ann"))
            assert created.is_success, created.text
        ids = [row[0] for row in await cluster.pool.fetch("SELECT id FROM baton.stream")]
        for id_ in ids:
            ended = await cluster.client.get(f"{own.url}/v1/streams/{id_}?wait=20", headers=user("ann"))
            assert ended.json()["status"] == "completed"
            assert (await cluster.client.get(f"{own.url}/v1/streams/{id_}", headers=user("bob"))).status_code == 404
        assert seen == ["user-ann"] * len(CREATES)
        listed = [await cluster.client.get(f"{own.url}/v1/streams", headers=user(name)) for name in ("ann", "bob")]
        assert [len(found.json()["data"]) for found in listed] == [len(CREATES), 0]
        for method, path in (("GET", "/metrics"), ("DELETE", f"/v1/streams/{ids[0]}"), ("PUT", "/v1/stream/x")):
            refused = await cluster.client.request(method, own.url + path, headers=user("ann"))
            assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")


async def test_nobody_gets_in_without_a_session(cluster: Cluster) -> None:
    async with shop(cluster) as own:
        for path, body in CREATES:
            refused = await cluster.client.post(own.url + path, json=body)
            assert refused.status_code == 401, refused.text
            assert refused.headers["www-authenticate"] == "Bearer"
        assert own.asked == ["POST"] * len(CREATES)
        # What needs no credential does not ask for one.
        assert (await cluster.client.get(f"{own.url}/healthz")).is_success
        assert len(own.asked) == len(CREATES)
        assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 0


async def test_batons_own_credentials_work_beside_a_session_and_count_alone(cluster: Cluster) -> None:
    _, key = await make_key(cluster, "create", "read", tenant="acme")
    async with shop(cluster) as own:
        created = await cluster.client.post(f"{own.url}/v1/streams", json={"input": 1}, headers=user("ann"))
        stream, token = f"{own.url}/v1/streams/{created.json()['id']}", created.json()["token"]
        own.asked.clear()
        assert (await cluster.client.get(stream, headers=bearer(token))).is_success
        assert (await cluster.client.get(f"{stream}?token={token}", headers=user("bob"))).is_success
        assert (await cluster.client.get(stream, headers={"cookie": f"baton_token={token}"})).is_success
        assert (await cluster.client.get(stream, headers=api_key(token) | user("bob"))).is_success
        assert (await cluster.client.get(stream, headers=bearer(key))).status_code == 404
        assert (await cluster.client.get(stream, headers=api_key(key) | user("ann"))).status_code == 404
        # One that has expired is refused, and does not become a session.
        changed = key[:-9] + ("a" if key[-9] != "a" else "b") + key[-8:]  # the last character may have unused bits
        for bad in (signed(created.json()["id"], exp=int(time.time()) - 100), changed):
            for way in (bearer, api_key):
                refused = await cluster.client.get(stream, headers=way(bad) | user("ann"))
                assert refused.status_code == 401, refused.text
        assert own.asked == []
        # The application may have tokens, too.
        for foreign in (jwt.encode({"sub": "ann"}, SECRETS["never"], "HS256"), "opaque", "a.b.c"):
            for way in (bearer, api_key):
                assert (await cluster.client.get(stream, headers=way(foreign) | user("ann"))).is_success
        assert len(own.asked) == 6


async def test_a_page_of_another_site_cannot_use_a_session(cluster: Cluster) -> None:
    async with shop(cluster, allowed_origins={"https://front.test"}) as own:
        created = await cluster.client.post(f"{own.url}/v1/streams", json={"input": 1}, headers=user("ann"))
        cancel = f"{own.url}/v1/streams/{created.json()['id']}/cancel"
        for page in (
            {"origin": "https://evil.test"},
            {"origin": "null"},
            {"origin": "https://evil.test", "authorization": "Bearer opaque"},
            {"sec-fetch-site": "cross-site"},
        ):
            asked = len(own.asked)
            for url in (cancel, f"{own.url}/v1/streams", f"{own.url}/v1/responses", f"{own.url}/v1/ai-sdk/chat"):
                refused = await cluster.client.post(url, json={"input": 1}, headers=user("ann") | page)
                assert refused.status_code == 403, refused.text
            assert len(own.asked) == asked
        for page in (
            {"origin": own.url.removesuffix("/ai"), "sec-fetch-site": "same-origin"},
            {"origin": "https://front.test", "sec-fetch-site": "cross-site"},
            {},
        ):
            assert (await cluster.client.post(cancel, headers=user("ann") | page)).is_success
        assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 1


async def test_what_the_application_raises_is_passed_on(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    async with shop(cluster) as own:

        async def refused(path: str, refusal: Exception) -> httpx2.Response:
            own.refusal = refusal
            return await cluster.client.get(own.url + path, headers=user("ann"))

        answer = await refused("/v1/streams", HTTPException(401, "Sign in.", {"www-authenticate": "Own"}))
        assert (answer.status_code, answer.json()["detail"]) == (401, "Sign in.")
        answer = await refused("/v1/models", HTTPException(403, "Not paid."))
        assert (answer.status_code, answer.json()["error"]["message"]) == (403, "Not paid.")
        answer = await refused("/v1/streams", HTTPException(303, headers={"location": "/login"}))
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")
        answer = await refused("/v1/streams", HTTPException(429, "Slowly.", {"retry-after": "7"}))
        assert (answer.status_code, answer.text, answer.headers["retry-after"]) == (429, "Slowly.", "7")
        with caplog.at_level(logging.ERROR):
            answer = await refused("/v1/streams", RuntimeError("the sessions are gone"))
        assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
        assert "the sessions are gone" not in answer.text


async def test_connections_end_with_the_session(cluster: Cluster) -> None:
    tap = Tap()
    await cluster.worker({"replay": tap})
    async with shop(cluster) as own:
        created = await cluster.client.post(f"{own.url}/v1/streams", json={"input": 1}, headers=user("ann"))
        own.caller = {"expires_at": datetime.now(UTC) + timedelta(seconds=1)}
        async with following(cluster.client, own.url, created.json()["id"], cookie="session=ann") as follower:
            tap.let("a")
            await follower.next_event()
            async with asyncio.timeout(20):
                await follower.rest()
        late = await cluster.client.get(f"{own.url}/v1/streams/{created.json()['id']}", headers=user("ann"))
        assert (late.status_code, late.json()["code"]) == (401, "unauthenticated")


def test_anonymous_access_and_sessions_exclude_each_other(cluster: Cluster) -> None:
    with pytest.raises(ConfigurationError, match="exclude each other"):
        create_app(cluster.settings(allow_anonymous=True), authenticate=Shop().authenticate)


async def test_the_body_is_not_there_to_be_read(cluster: Cluster) -> None:
    async def greedy(request: Request) -> Caller | None:
        await request.body()
        return None

    app = create_app(cluster.settings(allow_anonymous=False), authenticate=greedy)
    async with serving(app) as url:
        assert (await cluster.client.post(f"{url}/v1/streams", json={"input": 1})).status_code == 500
