"""Who gets in: every route with every kind of credential, right or wrong."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from tests.support.access import SECRETS, TENANT, api_key, bearer, guarded_pod, make_key, signed
from tests.support.cluster import Cluster, RunningPod, event
from tests.support.logbook import DEADLINE_SECONDS, until

from baton.api import ROUTES
from baton.api.anthropic_errors import ANTHROPIC_ERROR
from baton.api.browser_builds import NEWEST
from baton.api.openai_errors import OPENAI_ERROR
from baton.api.openai_models import MODELS_ERROR
from baton.api.routing import DeclaredRoute
from baton.events import encode_text
from baton.principal import SCOPES, AuthScope


@dataclass(frozen=True, slots=True)
class Row:
    """A route: how to call it, what it answers to callers who may use it, and who that is.

    `of_stream`: it is about one stream, so that a token of that stream is enough, if the scope is one that tokens have.
    `narrow`: so is a token that shows the answer only. `for_keys`: no token is enough.
    """

    path: str
    status: int
    body: Any = None
    of_stream: bool = False
    for_keys: bool = False
    code: str | None = None
    scope: AuthScope | None = None
    or_scope: AuthScope | None = None
    narrow: bool = False
    openai: bool = False
    anthropic: bool = False

    def of(self, route: DeclaredRoute) -> Row:
        return replace(
            self,
            scope=route.scope,
            or_scope=route.or_scope,
            narrow=route.narrow,
            openai=route.form in (OPENAI_ERROR, MODELS_ERROR),
            anthropic=route.form is ANTHROPIC_ERROR,
        )

    @property
    def takes_tokens(self) -> bool:
        return self.of_stream and self.scope != "admin" and not self.for_keys

    @property
    def takes_viewers(self) -> bool:
        """Whether the token of a viewer, which reads and cancels, is enough."""
        return self.takes_tokens and self.scope not in {"produce", "input"}


def row(path: str, status: int, **rest: Any) -> Row:
    return Row(path, status, **rest)


def nothing_there(path: str) -> Row:
    return row(path, 404, code="not_found")


ROOT = Path(__file__).parents[3]
MESSAGES = {"model": "replay", "messages": [{"role": "user", "content": "?"}]}
UI_MESSAGES = {"messages": [{"role": "user", "parts": [{"type": "text", "text": "?"}]}]}
RUN = {"assistant_id": "replay", "input": {"messages": [{"role": "user", "content": "?"}]}}
GRAPH = "/v1/langgraph"
AG_UI_RUN = {"threadId": "t", "runId": "r", "messages": [{"id": "m", "role": "user", "content": "?"}]}

CALLS: dict[tuple[str, str], Row] = {
    ("POST", "/v1/streams"): row("/v1/streams", 201, body={"input": "?"}),
    ("GET", "/v1/streams"): row("/v1/streams", 200),
    ("GET", "/v1/streams/{id}"): row("/v1/streams/{id}", 200, of_stream=True),
    ("DELETE", "/v1/streams/{id}"): row("/v1/streams/{id}", 204, of_stream=True),
    ("GET", "/v1/streams/{id}/events"): row("/v1/streams/{id}/events", 200, of_stream=True),
    ("GET", "/v1/streams/{id}/end"): row("/v1/streams/{id}/end", 200, of_stream=True),
    ("POST", "/v1/streams/{id}/inputs"): row(
        "/v1/streams/{id}/inputs", 409, body={"data": "?"}, of_stream=True, code="stream_ended"
    ),
    ("GET", "/v1/streams/{id}/inputs"): row("/v1/streams/{id}/inputs", 200, of_stream=True),
    ("POST", "/v1/streams/{id}/cancel"): row("/v1/streams/{id}/cancel", 200, of_stream=True),
    ("POST", "/v1/streams/{id}/token"): row("/v1/streams/{id}/token", 201, of_stream=True),
    ("PUT", "/v1/stream/{path:any}"): row("/v1/stream/notes-{hex}", 201, for_keys=True),
    # It is written by a generator.
    ("POST", "/v1/stream/{path:any}"): row(
        "/v1/stream/{id}", 409, body={"type": "text", "delta": "?"}, of_stream=True, code="not_appendable"
    ),
    ("DELETE", "/v1/stream/{path:any}"): row("/v1/stream/{id}", 204, of_stream=True, for_keys=True),
    ("POST", "/v1/responses"): row("/v1/responses", 200, body={"input": "?", "background": True}),
    ("GET", "/v1/responses/{id}"): row("/v1/responses/resp_{hex}", 200, of_stream=True),
    ("DELETE", "/v1/responses/{id}"): row("/v1/responses/resp_{hex}", 200, of_stream=True),
    ("POST", "/v1/responses/{id}/cancel"): row("/v1/responses/resp_{hex}/cancel", 200, of_stream=True),
    ("GET", "/v1/responses/{id}/input_items"): row("/v1/responses/resp_{hex}/input_items", 200, of_stream=True),
    ("POST", "/v1/conversations"): row("/v1/conversations", 200),
    ("GET", "/v1/conversations/{chat:any}"): row("/v1/conversations/42", 200),
    ("GET", "/v1/conversations/{chat:any}/items"): row("/v1/conversations/42/items", 200),
    ("POST", "/v1/chat/completions"): row("/v1/chat/completions", 200, body=MESSAGES),
    ("POST", "/v1/messages"): row("/v1/messages", 200, body=MESSAGES),
    ("POST", "/v1/messages/count_tokens"): row(
        "/v1/messages/count_tokens", 501, body=MESSAGES, code="token_count_not_supported"
    ),
    ("POST", "/v1/messages/batches"): row("/v1/messages/batches", 501, body={}, code="message_batches_not_supported"),
    ("GET", "/v1/models"): row("/v1/models", 200),
    ("GET", "/v1/models/{name:any}"): row("/v1/models/replay", 200),
    ("POST", "/v1/ai-sdk/chat"): row("/v1/ai-sdk/chat", 200, body=UI_MESSAGES),
    ("GET", "/v1/ai-sdk/chat/{chat:any}/stream"): row("/v1/ai-sdk/chat/run_{hex}/stream", 200, of_stream=True),
    ("POST", "/v1/ai-sdk/chat/{chat:any}/stop"): row("/v1/ai-sdk/chat/run_{hex}/stop", 204, of_stream=True),
    ("GET", f"{GRAPH}/info"): row(f"{GRAPH}/info", 200),
    ("POST", f"{GRAPH}/assistants/search"): row(f"{GRAPH}/assistants/search", 200, body={}),
    ("GET", f"{GRAPH}/assistants/{{assistant}}"): row(f"{GRAPH}/assistants/replay", 200),
    ("POST", f"{GRAPH}/threads"): row(f"{GRAPH}/threads", 200, body={}),
    ("GET", f"{GRAPH}/threads/{{thread}}"): row(f"{GRAPH}/threads/t", 200),
    ("GET", f"{GRAPH}/threads/{{thread}}/state"): row(f"{GRAPH}/threads/t/state", 200),
    ("POST", f"{GRAPH}/threads/{{thread}}/history"): row(f"{GRAPH}/threads/t/history", 200, body={}),
    **{
        ("POST", f"{GRAPH}/threads/{{thread}}/runs{how}"): row(f"{GRAPH}/threads/t{how[1:]}/runs{how}", 200, body=RUN)
        for how in ("", "/stream", "/wait")
    },
    **{("POST", f"{GRAPH}/runs{how}"): row(f"{GRAPH}/runs{how}", 200, body=RUN) for how in ("", "/stream", "/wait")},
    ("GET", f"{GRAPH}/threads/{{thread}}/runs"): row(f"{GRAPH}/threads/t/runs", 200),
    **{
        ("GET", f"{GRAPH}/threads/{{thread}}/runs/{{run}}{what}"): row(
            f"{GRAPH}/threads/42/runs/{{id}}{what}", 200, of_stream=True
        )
        for what in ("", "/stream", "/join")
    },
    ("POST", f"{GRAPH}/threads/{{thread}}/runs/{{run}}/cancel"): row(
        f"{GRAPH}/threads/42/runs/{{id}}/cancel", 202, of_stream=True
    ),
    **{
        (method, f"{GRAPH}{{rest:any}}"): nothing_there(f"{GRAPH}/no/such")
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
    },
    ("POST", "/v1/ai-sdk/{version}/chat"): row(
        "/v1/ai-sdk/v4/chat", 200, body={"messages": [{"role": "user", "content": "?"}]}
    ),
    ("GET", "/v1/ai-sdk/{version}/chat"): row("/v1/ai-sdk/v4/chat?chatId=c", 200),
    ("POST", "/v1/ag-ui/{generator:any}/runs/{run:any}/connect"): row(
        "/v1/ag-ui/replay/runs/run_{hex}/connect", 200, of_stream=True
    ),
    ("POST", "/v1/ag-ui/{generator:any}/runs/{run:any}/stop"): row(
        "/v1/ag-ui/replay/runs/run_{hex}/stop", 204, of_stream=True
    ),
    ("POST", "/v1/ag-ui/{generator:any}"): row("/v1/ag-ui/replay", 200, body=AG_UI_RUN),
    ("HEAD", "/v1/stream/{path:any}"): row("/v1/stream/{id}", 200, of_stream=True),
    ("GET", "/v1/stream/{path:any}"): row("/v1/stream/{id}", 200, of_stream=True),
    ("GET", "/healthz"): row("/healthz", 200),
    ("GET", "/errors"): row("/errors", 200),
    ("GET", "/openapi.json"): row("/openapi.json", 200),
    ("GET", "/readyz"): row("/readyz", 200),
    ("GET", "/metrics"): row("/metrics", 200),
    ("GET", "/console"): row("/console", 200),
    ("GET", "/assets/{name}"): row("/assets/baton.css", 200),
    ("GET", "/client.js"): row("/client.js", 302),
    ("GET", "/client/{file}"): row(f"/client/{NEWEST}", 200),
    ("GET", "/console/overview"): row("/console/overview", 200),
    ("GET", "/console/streams"): row("/console/streams", 200),
    **{
        (method, f"/v1/{path}{{rest:any}}"): nothing_there(f"/v1/{path}/no/such")
        for path in ("responses", "chat/completions", "messages")
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
    },
    **{
        (method, "/v1/models{rest:any}"): nothing_there("/v1/models/replay")
        for method in ("POST", "PUT", "PATCH", "DELETE")
    },
    ("GET", "/v1/models{rest:any}"): nothing_there("/v1/models-x"),
    **{
        (method, "/v1/messages/batches{rest:any}"): row(
            "/v1/messages/batches/no/such", 501, code="message_batches_not_supported"
        )
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
    },
}

DECLARED = {
    (method, route.path): route
    for route in ROUTES
    if isinstance(route, DeclaredRoute)
    for method in ((route.methods or set()) - {"HEAD"} if "GET" in (route.methods or ()) else route.methods or ())
}
# What each route asks for is declared at its handler; docs/access.md has it for readers.
TABLE = {key: call.of(DECLARED[key]) for key, call in CALLS.items() if key in DECLARED}


def test_each_route_has_a_row() -> None:
    assert all(isinstance(route, DeclaredRoute) for route in ROUTES)
    assert CALLS.keys() == DECLARED.keys()


def table_for_readers() -> str:
    lines = ["| route | scope | stream token |", "| --- | --- | --- |"]
    for (method, path), route in DECLARED.items():
        if route.include_in_schema and route.scope is not None:
            shown = TABLE[method, path]
            viewer = ("also of the answer" if route.narrow else "yes") if shown.takes_viewers else ""
            writer = "of a producer" if shown.takes_tokens and "produce" in {route.scope, route.or_scope} else ""
            sender = "for inputs" if shown.takes_tokens and route.scope == "input" else ""
            token = ", ".join(filter(None, (viewer, writer, sender)))
            scope = f"`{route.scope}`" if route.or_scope is None else f"`{route.scope}` or `{route.or_scope}`"
            lines.append(f"| `{method} {route.documented_path}` | {scope} | {token} |")
    return "\n".join(lines)


def test_the_page_about_access_has_the_scope_of_each_route() -> None:
    assert table_for_readers() in (ROOT / "docs" / "access.md").read_text(), table_for_readers()


@dataclass(slots=True)
class Scene:
    """A pod with access control, two tenants, and a stream that has ended."""

    cluster: Cluster
    pod: RunningPod
    keys: dict[str, str]
    stream_id: UUID

    async def call(self, method: str, row: Row, stream_id: UUID, headers: dict[Any, Any]) -> httpx2.Response:
        path = row.path.format(id=stream_id, hex=stream_id.hex)
        body = {} if row.body is None else {"json": row.body}
        return await self.cluster.client.request(method, self.pod.url + path, headers=headers, **body)

    async def ended_stream(self, tenant: str = TENANT, chat: str = "42") -> UUID:
        author = await self.cluster.author(tenant=tenant, generator="nobody", chat=chat)
        await author.write(event(type="reasoning", delta="hidden"), encode_text("shown"), notify=False, end=True)
        return author.id


@pytest.fixture
async def scene(cluster: Cluster) -> Scene:
    names = {"right": await make_key(cluster), "wrong tenant": await make_key(cluster, tenant="other")}
    for scope in SCOPES:
        names[f"without {scope}"] = await make_key(cluster, *(SCOPES - {scope}))
    names["only cancel"] = await make_key(cluster, "cancel")
    names["revoked"], names["expired"] = await make_key(cluster), await make_key(cluster)
    now = "clock_timestamp() - interval '1 s'"
    await cluster.pool.execute(f"UPDATE baton.api_key SET revoked_at = {now} WHERE id = $1", names["revoked"][0].id)
    await cluster.pool.execute(f"UPDATE baton.api_key SET expires_at = {now} WHERE id = $1", names["expired"][0].id)

    async def generate(request: Any, /) -> Any:
        yield "shown"

    # Its reaper would take the test's own streams, which no worker runs, while they are written.
    await cluster.worker({"replay": generate}, lease_seconds=300)
    pod = await guarded_pod(cluster)
    scene = Scene(cluster, pod, {name: text for name, (_, text) in names.items()}, uuid4())
    scene.stream_id = await scene.ended_stream()
    return scene


def code_of(answer: httpx2.Response, row: Row) -> str | None:
    # The answer to a `HEAD` has no body.
    if answer.status_code < 400 or answer.request.method == "HEAD":
        return None
    content = answer.json()
    if row.anthropic:
        return str(content["error"]["details"]["error_code"])
    return str(content["error"]["code"] if row.openai else content["code"])


async def columns(scene: Scene) -> dict[str, dict[Any, Any] | None]:
    """The headers of each column; None: those of the key that lacks just the scope that is needed."""
    keys, own, other = scene.keys, scene.stream_id, await scene.ended_stream()
    key_id, secret = keys["right"].removeprefix("baton_").split("_")
    wrong_secret = f"{(int(secret, 16) ^ 1):064x}"
    return {
        "no credential": {},
        "malformed": bearer("baton_x_y"),
        "empty": {"authorization": "Bearer"},
        "no ASCII": {b"authorization": b"Bearer \xfc.\xfc.\xfc"},
        "another scheme": {"authorization": "Basic eDp5"},
        "a gateway's key": api_key("opaque"),
        "no ASCII in X-Api-Key": {b"x-api-key": b"\xfc.\xfc.\xfc"},
        "revoked X-Api-Key": api_key(keys["revoked"]),
        "right X-Api-Key behind a wrong bearer": api_key(keys["right"]) | bearer("baton_x_y"),
        "wrong secret": bearer(f"baton_{key_id}_{wrong_secret}"),
        "unknown key": bearer(f"baton_{uuid4().hex}_{secret}"),
        "revoked key": bearer(keys["revoked"]),
        "expired key": bearer(keys["expired"]),
        "expired token": bearer(signed(own, iat=int(time.time()) - 3600, exp=int(time.time()) - 60)),
        "token of an unknown key": bearer(signed(own, kid="never")),
        "wrong tenant": bearer(keys["wrong tenant"]),
        "token of the wrong tenant": bearer(signed(own, tenant="other")),
        "wrong scope": None,
        "other stream's token": bearer(signed(other)),
        "token": bearer(signed(own)),
        "token for reading": bearer(signed(own, scopes=["read"])),
        "token for writing": bearer(signed(own, scopes=["produce"])),
        "token for inputs": bearer(signed(own, scopes=["input"])),
        "token of the answer": bearer(signed(own, view="answer")),
        "right": bearer(keys["right"]),
        "X-Api-Key": api_key(keys["right"]),
    }


REFUSED = {
    *(
        "no credential",
        "malformed",
        "empty",
        "no ASCII",
        "another scheme",
        "wrong secret",
        "unknown key",
        "revoked key",
    ),
    *("expired key", "expired token", "token of an unknown key", "a gateway's key", "no ASCII in X-Api-Key"),
    *("revoked X-Api-Key", "right X-Api-Key behind a wrong bearer"),
}


RIGHT = {"right", "X-Api-Key"}
OTHERS = {"other stream's token", "token of the wrong tenant"}


def expected(column: str, row: Row) -> tuple[int, str | None]:
    """The status and, of an error, the code."""
    right = (row.status, row.code)
    if row.scope is None or column in RIGHT:
        return right
    if column in REFUSED:
        return 401, "invalid_api_key" if row.openai else "unauthenticated"
    if column == "wrong tenant":
        return (404, "stream_not_found") if row.of_stream else right
    if column == "wrong scope" or not allows(column, row):
        return 403, "forbidden"
    return (404, "stream_not_found") if column in OTHERS and row.of_stream else right


# Routes that only say what is missing here.
NOT_HERE = {"not_found", "token_count_not_supported", "message_batches_not_supported"}


def allows(token: str, row: Row) -> bool:
    """Whether what a token is for includes a route, if the stream is its own."""
    if token == "token of the answer" and not row.narrow:
        return False
    if token == "token for reading" and row.scope != "read":
        return False
    for kind, scope in (("token for writing", "produce"), ("token for inputs", "input")):
        if (token == kind) != (row.scope == scope) and not (token == kind and row.or_scope == scope):
            return False
    return row.takes_tokens or row.code in NOT_HERE


def lacking(row: Row) -> str:
    """The key that lacks just what a route asks for."""
    return f"without {row.scope or 'read'}" if row.or_scope is None else "only cancel"


async def test_each_route_with_each_credential(scene: Scene, subtests: pytest.Subtests) -> None:
    async def cell(column: str, key: tuple[str, str], headers: dict[Any, Any]) -> httpx2.Response:
        fresh = column in RIGHT and key[0] in {"DELETE", "PUT"}
        # In a chat of its own: some of the other requests stop the newest answer of the chat.
        stream_id = await scene.ended_stream(chat=uuid4().hex) if fresh else scene.stream_id
        return await scene.call(key[0], TABLE[key], stream_id, headers)

    for column, headers in (await columns(scene)).items():
        given = {key: bearer(scene.keys[lacking(row)]) if headers is None else headers for key, row in TABLE.items()}
        answers = await asyncio.gather(*(cell(column, key, given[key]) for key in TABLE))
        for (key, row), answer in zip(TABLE.items(), answers, strict=True):
            with subtests.test(f"{column}: {' '.join(key)}"):
                status, code = expected(column, row)
                assert answer.status_code == status, answer.text
                assert code_of(answer, row) == (None if key[0] == "HEAD" else code), answer.text
                assert ("www-authenticate" in answer.headers) == (answer.status_code == 401)
                assert answer.status_code != 401 or answer.headers["www-authenticate"] == "Bearer"


async def test_another_tenants_stream_is_not_found(scene: Scene, subtests: pytest.Subtests) -> None:
    # Of a version that ids have: other UUIDs are paths.
    theirs, nobodys = await scene.ended_stream("other"), UUID(int=(uuid4().int & ~(0xF << 76)) | (7 << 76))
    own = {"key": scene.keys["right"], "token": signed(scene.stream_id)}
    for kind, credential in own.items():
        for (method, path), row in TABLE.items():
            if row.of_stream and (kind == "key" or row.takes_viewers):
                with subtests.test(f"{kind}: {method} {path}"):
                    told = []
                    for stream_id in (theirs, nobodys):
                        known = bearer(credential) | {"x-request-id": "the-same"}
                        answer = await scene.call(method, row, stream_id, known)
                        headers = {name: text for name, text in answer.headers.items() if name != "date"}
                        content = answer.text.replace(str(stream_id), "{id}").replace(stream_id.hex, "{id}")
                        told.append((answer.status_code, content, headers))
                    assert told[0] == told[1]
                    assert told[0][0] == 404


async def test_a_tenant_lists_its_own_streams(scene: Scene) -> None:
    theirs = await scene.ended_stream("other")
    for name, listed in (("right", scene.stream_id), ("wrong tenant", theirs)):
        answer = await scene.cluster.client.get(f"{scene.pod.url}/v1/streams", headers=bearer(scene.keys[name]))
        assert [item["id"] for item in answer.json()["data"]] == [str(listed)]


async def test_no_credential_is_ever_logged(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = signed(scene.stream_id)
    ways: list[tuple[dict[str, str], str]] = [
        (bearer(token), ""),
        (bearer(scene.keys["right"]), ""),
        (api_key(token), ""),
        (api_key(scene.keys["right"]), ""),
        (api_key(scene.keys["right"] + "x"), ""),
        ({"cookie": f"baton_token={token}"}, ""),
        ({}, f"?token={token}"),
        ({}, f"?token={scene.keys['right']}"),
        ({}, f"?token={signed(scene.stream_id, kid='never')}"),
    ]
    for headers, query in ways:
        for method, row in ((method, row) for (method, _), row in TABLE.items() if row.scope == "read"):
            path = row.path.format(id=scene.stream_id, hex=scene.stream_id.hex)
            await scene.cluster.client.request(method, f"{scene.pod.url}{path}{query}", headers=headers)
    ours = [record for record in caplog.records if not record.name.startswith(("httpx2", "httpcore2"))]
    said = "\n".join(f"{record.getMessage()} {record.exc_text}" for record in ours)
    for secret in (token.split(".")[2], scene.keys["right"].split("_")[2], *SECRETS.values()):
        assert secret not in said


# Ways to show a token


async def test_a_token_is_taken_from_header_cookie_and_query(scene: Scene) -> None:
    url = f"{scene.pod.url}/v1/streams/{scene.stream_id}"
    token, bad = signed(scene.stream_id), "x.y.z"
    ways: list[tuple[dict[str, str], str, int]] = [
        (bearer(token), "", 200),
        ({"authorization": f"bearer  {token}"}, "", 200),
        ({"cookie": f"a=b; baton_token={token}"}, "", 200),
        ({}, f"?token={token}", 200),
        ({"cookie": f"baton_token={token}"}, f"?token={bad}", 200),
        (bearer(token) | {"cookie": f"baton_token={bad}"}, "", 200),
        (bearer(bad) | {"cookie": f"baton_token={token}"}, "", 401),
        ({"authorization": "Basic eDp5"}, f"?token={token}", 200),
        ({"cookie": f"baton_token={scene.keys['right']}"}, "", 401),
        ({}, f"?token={scene.keys['right']}", 401),
        (api_key(token), "", 200),
        (api_key(token) | {"cookie": f"baton_token={bad}"}, f"?token={bad}", 200),
        (api_key(bad) | {"cookie": f"baton_token={token}"}, "", 401),
        (api_key(bad) | bearer(token), "", 200),
        (api_key("opaque") | {"cookie": f"baton_token={token}"}, "", 200),
    ]
    for headers, query, status in ways:
        for path in ("", "/events"):
            answer = await scene.cluster.client.get(url + path + query, headers=headers)
            assert answer.status_code == status, (headers, query, path, answer.text)


async def test_a_cookie_sent_by_another_sites_page_changes_nothing(scene: Scene) -> None:
    url = f"{scene.pod.url}/v1/streams/{scene.stream_id}"
    token = signed(scene.stream_id)
    cookie, host = {"cookie": f"baton_token={token}"}, scene.pod.url.removeprefix("http://")
    for origin, status in (
        (None, 200),
        (f"http://{host}", 200),
        (f"https://{host}", 200),
        ("https://evil.test", 403),
        ("null", 403),
        ("", 403),
        ("http://[", 403),
    ):
        headers = cookie | ({} if origin is None else {"origin": origin})
        assert (await scene.cluster.client.post(f"{url}/cancel", headers=headers)).status_code == status, origin
        assert (await scene.cluster.client.get(url, headers=headers)).status_code == 200
    evil = {"origin": "https://evil.test"}
    assert (await scene.cluster.client.post(f"{url}/cancel", headers=bearer(token) | evil)).status_code == 200


async def test_the_host_of_an_absolute_url_overrides_the_header(scene: Scene) -> None:
    """Else a page's own host in the header would make it one of ours."""
    where, port = scene.pod.url.removeprefix("http://").split(":")
    for host, status in (("evil.test", b"403"), ("pods.test", b"200")):
        reader, writer = await asyncio.open_connection(where, int(port))
        head = (
            f"POST http://pods.test/v1/streams/{scene.stream_id}/cancel HTTP/1.1",
            "Host: evil.test",
            f"Origin: http://{host}",
            f"Cookie: baton_token={signed(scene.stream_id)}",
            "Content-Length: 0",
        )
        writer.write("\r\n".join([*head, "", ""]).encode())
        assert (await asyncio.wait_for(reader.readline(), 10)).split()[1] == status
        writer.close()


async def test_a_page_of_an_allowed_origin_may_use_its_cookie(scene: Scene) -> None:
    pod = await guarded_pod(scene.cluster, allowed_origins="https://chat.test")
    url = f"{pod.url}/v1/streams/{scene.stream_id}/cancel"
    cookie = {"cookie": f"baton_token={signed(scene.stream_id)}"}
    for origin, status in (("https://chat.test", 200), ("https://evil.test", 403)):
        answer = await scene.cluster.client.post(url, headers=cookie | {"origin": origin})
        assert answer.status_code == status
        assert ("access-control-allow-origin" in answer.headers) == (status == 200)


# What tokens are worth


async def create(scene: Scene, credential: str, **body: Any) -> httpx2.Response:
    return await scene.cluster.client.post(
        f"{scene.pod.url}/v1/streams", json={"input": "?"} | body, headers=bearer(credential)
    )


async def make_token(scene: Scene, stream_id: object, credential: str, **body: Any) -> httpx2.Response:
    url = f"{scene.pod.url}/v1/streams/{stream_id}/token"
    return await scene.cluster.client.post(url, json=body, headers=bearer(credential))


async def test_a_new_streams_token_can_only_read_and_cancel_it(scene: Scene) -> None:
    created = (await create(scene, scene.keys["right"])).json()
    mine = bearer(created["token"])
    url = scene.pod.url + f"/v1/streams/{created['id']}"
    client = scene.cluster.client
    assert b'"type":"done"' in (await client.get(scene.pod.url + created["events_url"], headers=mine)).content
    assert (await client.post(f"{url}/cancel", headers=mine)).status_code == 200
    assert (await client.delete(url, headers=mine)).status_code == 403
    narrow = (await create(scene, scene.keys["right"], token={"scopes": ["read"], "view": "answer"})).json()
    url = scene.pod.url + f"/v1/streams/{narrow['id']}"
    assert (await client.get(url, headers=bearer(narrow["token"]))).status_code == 200
    assert (await client.post(f"{url}/cancel", headers=bearer(narrow["token"]))).status_code == 403


async def test_a_token_is_issued_when_a_stream_is_created_and_followed(scene: Scene) -> None:
    for accept in ("text/event-stream", "text/plain"):
        answer = await scene.cluster.client.post(
            f"{scene.pod.url}/v1/streams", json={"input": 1}, headers={"accept": accept} | bearer(scene.keys["right"])
        )
        path, token = answer.headers["location"], answer.headers["x-baton-token"]
        assert (await scene.cluster.client.get(scene.pod.url + path, headers=bearer(token))).status_code == 200


async def test_a_token_never_gains_rights(scene: Scene) -> None:
    _, maker = await make_key(scene.cluster, "create", "read")
    forbidden = (403, "forbidden")
    answer = await create(scene, maker, token={"scopes": ["read", "cancel"]})
    assert (answer.status_code, answer.json()["code"]) == forbidden
    assert (await create(scene, maker)).status_code == 201
    _, blind = await make_key(scene.cluster, "create")
    assert (await create(scene, blind)).json()["token"] is None

    own = scene.stream_id
    for token, body, status in (
        (signed(own), {}, 201),
        (signed(own), {"scopes": ["cancel"], "view": "answer"}, 201),
        (signed(own, scopes=["read"]), {"scopes": ["cancel"]}, 403),
        (signed(own, view="answer"), {"view": "full"}, 403),
        (signed(own, view="answer"), {}, 201),
        (signed(own, scopes=["cancel"]), {}, 403),
        (signed(own), {"scopes": []}, 400),
        (signed(own), {"scopes": ["admin"]}, 400),
        (signed(own), {"view": "none"}, 400),
    ):
        answer = await make_token(scene, own, token, **body)
        assert answer.status_code == status, (body, answer.text)
    narrow = (await make_token(scene, own, signed(own, view="answer"))).json()["token"]
    assert (await make_token(scene, own, narrow, view="full")).status_code == 403


async def test_a_token_issued_to_a_token_expires_no_later(scene: Scene) -> None:
    soon = int(time.time()) + 100
    answer = (await make_token(scene, scene.stream_id, signed(scene.stream_id, exp=soon))).json()
    assert answer["expires_at"].startswith(time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(soon)))
    made = (await make_token(scene, scene.stream_id, scene.keys["right"])).json()["expires_at"]
    assert made > time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(soon))


async def test_a_token_works_for_a_grace_after_the_streams_end(scene: Scene) -> None:
    old, young = await scene.ended_stream(), await scene.ended_stream()
    change = "UPDATE baton.stream SET finished_at = clock_timestamp() - make_interval(secs => $2) WHERE id = $1"
    await scene.cluster.pool.execute(change, old, 901.0)
    await scene.cluster.pool.execute(change, young, 890.0)
    reading = [(key, row) for key, row in TABLE.items() if row.takes_viewers]
    for (method, path), row in reading:
        assert (await scene.call(method, row, old, bearer(signed(old)))).status_code == 401, path
        assert (await scene.call(method, row, young, bearer(signed(young)))).status_code == row.status, path
        for_key = 404 if path.endswith("/token") else row.status
        assert (await scene.call(method, row, old, bearer(scene.keys["right"]))).status_code == for_key, path


async def test_a_token_of_an_ended_stream_has_its_expiry(scene: Scene) -> None:
    ended = await scene.ended_stream()
    change = "UPDATE baton.stream SET finished_at = to_timestamp($2) WHERE id = $1"
    await scene.cluster.pool.execute(change, ended, time.time() - 100)
    made = (await make_token(scene, ended, scene.keys["right"])).json()["expires_at"]
    assert made < time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + 801))
    await scene.cluster.pool.execute(change, ended, time.time() - 901)
    answer = await make_token(scene, ended, scene.keys["right"])
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_the_grace_starts_at_the_end_seen_by_a_relay(cluster: Cluster) -> None:
    await make_key(cluster)
    pod = await guarded_pod(cluster, token_grace_seconds=0)
    author = await cluster.author(tenant=TENANT)
    url = f"{pod.url}/v1/streams/{author.id}/events"
    async with cluster.client.stream("GET", url, headers=bearer(signed(author.id))) as response:
        parts = response.aiter_raw()
        await anext(parts)
        reads = pod.metric("baton_log_reads_total")
        await author.write(encode_text("shown"), end=True)
        rest = b"".join([part async for part in parts])
    assert b'"type":"done"' in rest
    answer = await cluster.client.get(url, headers=bearer(signed(author.id)))
    assert (answer.status_code, answer.json()["detail"]) == (
        401,
        "The token has expired, because its stream has ended.",
    )
    assert pod.metric("baton_log_reads_total") == reads


async def test_a_token_of_a_running_stream_works_for_a_day(cluster: Cluster) -> None:
    await make_key(cluster)
    pod = await guarded_pod(cluster)
    author = await cluster.author(tenant=TENANT)
    url, now = f"{pod.url}/v1/streams/{author.id}", int(time.time())
    for age, lifetime, status in ((86_300, 86_400, 200), (86_500, 86_400, 401), (0, 86_401, 401), (-10, 60, 200)):
        token = signed(author.id, iat=now - age, exp=now - age + lifetime)
        assert (await cluster.client.get(url, headers=bearer(token))).status_code == status, (age, lifetime)


# The answer view


HIDDEN = ("hidden", "secret", "tool", "usage", "timings", "metadata", "generator", "tokens", "reasoning")


@pytest.fixture
async def rich(scene: Scene) -> UUID:
    """A stream with something of everything that a viewer of the answer must not see."""
    author = await scene.cluster.author(tenant=TENANT, generator="nobody", note="secret", chat="hidden")
    await author.write(
        event(type="reasoning", delta="hidden"),
        encode_text("shown"),
        event(type="tool_call", index=0, id="c0", name="secret", arguments_delta="{}"),
        event(type="tool_result", id="c0", result="secret"),
        event(type="usage", total_tokens=7),
        event(type="custom", name="secret", data={}),
        end=True,
    )
    return author.id


async def test_an_answer_token_shows_only_the_answer(scene: Scene, rich: UUID) -> None:
    headers = bearer(signed(rich, view="answer"))
    seen = 0
    for accept in ("*/*", "text/event-stream", "text/plain"):
        for query in ("", "?view=answer", "?snapshot=1", "?view=full", "?wait=1", "?stream=true", "?startIndex=-3"):
            for (method, path), row in TABLE.items():
                if row.scope is None:
                    continue
                called = row.path.format(id=rich, hex=rich.hex).replace(
                    f"run_{rich.hex}", "hidden" if "s" in query else f"run_{rich.hex}"
                )
                url = scene.pod.url + called + query
                answer = await scene.cluster.client.request(method, url, headers=headers | {"accept": accept})
                if answer.status_code < 400:
                    seen += 1
                    content = answer.text if row.path != "/v1/streams/{id}/token" else ""
                    assert not [word for word in HIDDEN if word in content], (method, path, query, content)
    assert seen > 20


async def test_asking_for_more_than_the_answer_is_forbidden(scene: Scene, rich: UUID) -> None:
    url = f"{scene.pod.url}/v1/streams/{rich}/events"
    headers = bearer(signed(rich, view="answer"))
    answer = await scene.cluster.client.get(f"{url}?view=full", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    told = await scene.cluster.client.get(url, headers=headers)
    assert told.text.endswith(
        'id: 2\ndata: {"type":"text","delta":"shown"}\n\n'
        'id: 7\ndata: {"type":"done","status":"completed","finish_reason":"stop"}\n\n'
    )
    content = (await scene.cluster.client.get(f"{scene.pod.url}/v1/streams/{rich}", headers=headers)).json()
    assert (content["text"], content["status"], content["last_event_id"]) == ("shown", "completed", 7)


# Chats of the AI SDK


async def test_a_token_finds_a_chat_whose_newest_stream_is_its_own(scene: Scene) -> None:
    older = await scene.cluster.author(tenant=TENANT, generator="nobody", chat="c")
    newer = await scene.cluster.author(tenant=TENANT, generator="nobody", chat="c")
    url = f"{scene.pod.url}/v1/ai-sdk/chat/c/stop"
    for stream_id, status in ((older.id, 204), (newer.id, 202)):
        assert (await scene.cluster.client.post(url, headers=bearer(signed(stream_id)))).status_code == status


# Rotation


async def test_keys_are_replaced_without_a_restart(cluster: Cluster) -> None:
    first, old = await make_key(cluster, name="first")
    pods = [await guarded_pod(cluster, keys_refresh_seconds=0.05) for _ in range(2)]
    _, new = await make_key(cluster, name="second")

    async def statuses(key: str) -> set[int]:
        asked = [cluster.client.get(f"{pod.url}/v1/streams", headers=bearer(key)) for pod in pods]
        return {answer.status_code for answer in await asyncio.gather(*asked)}

    assert await statuses(new) == await statuses(old) == {200}
    await cluster.pool.execute("UPDATE baton.api_key SET revoked_at = clock_timestamp() WHERE id = $1", first.id)
    await until(lambda: all(first.id not in pod.pod.gate.ring for pod in pods))
    assert (await statuses(old), await statuses(new)) == ({401}, {200})


async def test_a_follower_with_a_revoked_key_is_disconnected(cluster: Cluster) -> None:
    key, text = await make_key(cluster, name="first")
    pod = await guarded_pod(cluster, keys_refresh_seconds=0.05, sse_keep_alive_seconds=0.5)
    author = await cluster.author(tenant=TENANT)
    await author.write(encode_text("a"))
    url = f"{pod.url}/v1/streams/{author.id}/events"
    async with cluster.client.stream("GET", url, headers=bearer(text)) as response:
        parts = response.aiter_raw()
        await anext(parts)
        await cluster.pool.execute("UPDATE baton.api_key SET revoked_at = clock_timestamp() WHERE id = $1", key.id)
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert [part async for part in parts][-1].startswith(b": baton\nretry: ")
    assert (await cluster.client.get(url, headers=bearer(text))).status_code == 401


async def test_a_waiting_client_with_a_revoked_key_gets_no_answer(cluster: Cluster) -> None:
    key, text = await make_key(cluster)
    pod = await guarded_pod(cluster, keys_refresh_seconds=0.05)
    author = await cluster.author(tenant=TENANT)
    url = f"{pod.url}/v1/streams/{author.id}?wait=20"
    waiting = asyncio.create_task(cluster.client.get(url, headers=bearer(text)))
    await until(lambda: pod.metric("baton_subscribers") == 1)
    await cluster.pool.execute("UPDATE baton.api_key SET revoked_at = clock_timestamp() WHERE id = $1", key.id)
    await until(lambda: key.id not in pod.pod.gate.ring)
    await author.write(encode_text("secret"), end=True)
    assert (await waiting).status_code == 401
    assert pod.metric("baton_subscribers") == 0


# Without access control


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "cross-site", "origin": "https://evil.test"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "https://page.test"}, 201),
        ({"sec-fetch-site": "same-origin", "origin": "https://behind.a.proxy.test"}, 201),
        ({"origin": "https://old.browser.test"}, 201),
    ],
)
async def test_without_access_control_pages_of_other_sites_cannot_write(
    cluster: Cluster, headers: dict[str, str], status: int
) -> None:
    pod = await cluster.pod(allowed_origins="https://page.test")
    answer = await cluster.client.post(f"{pod.url}/v1/streams", json={"input": 1}, headers=headers)
    assert answer.status_code == status
    assert (await cluster.client.get(f"{pod.url}/v1/streams", headers=headers)).status_code == 200
    openly = await cluster.pod(allowed_origins="*")
    assert (await cluster.client.post(f"{openly.url}/v1/streams", json={"input": 1}, headers=headers)).is_success


async def test_without_access_control_credentials_are_ignored(cluster: Cluster) -> None:
    pod = await cluster.pod(token_keys=f"new={SECRETS['new']}")
    location = ""
    for headers in ({}, bearer("sk-none"), bearer("a.b.c"), {"cookie": "baton_token=x", "origin": "https://x.test"}):
        answer = await cluster.client.post(f"{pod.url}/v1/streams", json={"input": 1}, headers=headers)
        assert (answer.status_code, answer.json()["token"]) == (201, None)
        location = answer.headers["location"]
    answer = await cluster.client.post(f"{pod.url}{location}/token")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
