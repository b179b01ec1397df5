"""Anthropic's official clients, unmodified, against real pods."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic import AsyncAnthropic, beta_async_tool
from bench.packages import INSTALL_SECONDS
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from tests.clients.balancer import LOSES_THE_ANSWER, balancer
from tests.clients.node import Node
from tests.clients.pods import ANSWER, WORDS, two_pods
from tests.clients.test_browser import CHROMIUM, START_SECONDS, browser
from tests.support.access import guarded_pod, make_key
from tests.support.cluster import Cluster, Tap
from tests.support.logbook import until
from tests.support.serving import served

from baton import messages
from baton.errors import GenerationError

CUT = (anthropic.APIConnectionError, httpx2.HTTPError)
ASKED: Any = {"max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]}
THINKING: Any = {"type": "enabled", "budget_tokens": 1024}
SIGNED = {"type": "reasoning", "delta": "", "signature": "c2ln"}


def client_of(url: str, **given: Any) -> AsyncAnthropic:
    options: dict[str, Any] = {"base_url": url, "api_key": "none", "max_retries": 0, "timeout": 20}
    return AsyncAnthropic(**options | given)


def keyed(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key}


async def think(request: Any, /) -> AsyncGenerator[Any, None]:
    """Answer with thinking, a text, and the usage."""
    for delta in ("h", "m"):
        yield {"type": "reasoning", "delta": delta}
    yield SIGNED
    yield "You said: "
    yield messages(request.input)[-1]["content"]
    yield {"type": "usage", "input_tokens": 30, "output_tokens": 5, "cached_tokens": 10}


async def weather(request: Any, /) -> AsyncGenerator[Any, None]:
    """Call two tools of the client at once, and say what they returned; a third one is the generator's own."""
    results = [message["content"] for message in messages(request.input) if message["role"] == "tool"]
    if results:
        yield " and ".join(results)
        return
    yield "Let me look."
    yield {"type": "tool_call", "index": 0, "id": "own", "name": "search", "arguments_delta": "{}"}
    yield {"type": "tool_result", "id": "own", "result": "nothing"}
    for index, city in ((1, "Oslo"), (2, "Rome")):
        head = {"type": "tool_call", "index": index, "id": f"c{index}", "name": "look", "run_by": "client"}
        yield head | {"arguments_delta": '{"city": '}
        yield {"type": "tool_call", "index": index, "arguments_delta": f'"{city}"}}'}


async def fail(request: Any, /) -> AsyncGenerator[Any, None]:
    yield "half an"
    raise GenerationError("provider_rate_limited", "The provider limits requests.")


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[AsyncAnthropic]:
    """A client of a pod, beside a worker."""
    pod = await cluster.pod()
    await cluster.worker({"think": think, "weather": weather, "fail": fail})
    async with client_of(pod.url) as client:
        yield client


async def test_a_message_is_the_same_whole_and_streamed(client: AsyncAnthropic) -> None:
    whole = await client.messages.create(model="think", thinking=THINKING, **ASKED)
    async with client.messages.stream(model="think", thinking=THINKING, **ASKED) as stream:
        events = [event.type async for event in stream]
        streamed = await stream.get_final_message()
    assert [block.to_dict() for block in streamed.content] == [block.to_dict() for block in whole.content]
    assert [block.type for block in whole.content] == ["thinking", "text"]
    assert whole.content[0].to_dict() == {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
    assert whole.content[1].to_dict() == {"type": "text", "text": "You said: Hello"}
    for message in (whole, streamed):
        assert (message.stop_reason, message.model) == ("end_turn", "think")
        usage = message.usage
        assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (20, 10, 5)
    assert {"signature", "text", "message_stop"} <= set(events)
    assert whole._request_id


async def test_thinking_comes_only_to_a_client_that_asks(client: AsyncAnthropic) -> None:
    whole = await client.messages.create(model="think", **ASKED)
    assert [block.type for block in whole.content] == ["text"]


async def test_the_tool_runner_runs_the_clients_tools_and_no_others(client: AsyncAnthropic) -> None:
    seen: list[str] = []

    @beta_async_tool
    async def look(city: str) -> str:
        """Say what the weather is like."""
        seen.append(city)
        return f"rain in {city}"

    for streams in (False, True):
        runner: Any = client.beta.messages.tool_runner(model="weather", tools=[look], stream=streams, **ASKED)
        last = await runner.until_done()
        assert (last.content[0].text, last.stop_reason) == ("rain in Oslo and rain in Rome", "end_turn")
    assert sorted(seen) == ["Oslo", "Oslo", "Rome", "Rome"]


async def test_errors_have_their_types(cluster: Cluster, client: AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        await client.messages.create(model="nobody", **ASKED)
    assert (unknown.value.type, unknown.value.request_id is None) == ("not_found_error", False)
    with pytest.raises(anthropic.BadRequestError):
        await client.messages.create(model="think", max_tokens=1, messages=[])
    with pytest.raises(anthropic.RateLimitError) as failed:
        await client.with_options(max_retries=2).messages.create(model="fail", **ASKED)
    assert failed.value.type == "rate_limit_error"
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 1
    with pytest.raises(anthropic.APIStatusError, match="The provider limits requests"):
        async with client.messages.stream(model="fail", **ASKED) as stream:
            await stream.get_final_message()
    for refused in (
        client.messages.count_tokens(model="think", messages=ASKED["messages"]),
        client.messages.batches.list(),
    ):
        with pytest.raises(anthropic.APIStatusError) as missing:
            await refused
        assert (missing.value.status_code, missing.value.type) == (501, "invalid_request_error")


async def test_either_header_is_a_credential(cluster: Cluster) -> None:
    _, key = await make_key(cluster)
    await cluster.worker({"think": think})
    pod = await guarded_pod(cluster)
    for given in ({"api_key": key}, {"api_key": None, "auth_token": key}):
        async with client_of(pod.url, **given) as client:
            assert (await client.messages.create(model="think", **ASKED)).stop_reason == "end_turn"
    async with client_of(pod.url) as client:
        with pytest.raises(anthropic.AuthenticationError) as refused:
            await client.messages.create(model="think", **ASKED)
        assert refused.value.type == "authentication_error"


async def test_models_are_listed_in_pages(client: AsyncAnthropic) -> None:
    found = [model.id async for model in await client.models.list(limit=1)]
    assert {"think", "weather", "fail"} <= set(found)
    assert found == sorted(found)
    assert (await client.models.retrieve("think")).display_name == "think"
    with pytest.raises(anthropic.NotFoundError):
        await client.models.retrieve("nobody")


async def test_a_message_is_cancelled_when_its_client_leaves_unless_it_can_return(cluster: Cluster) -> None:
    tap = Tap()
    pod = await cluster.pod()
    await cluster.worker({"tap": tap})
    status = "SELECT status::text FROM baton.stream ORDER BY created_at DESC LIMIT 1"
    async with client_of(pod.url) as client:
        for key in ({}, keyed("k")):
            tap.let("a")
            async with client.messages.stream(model="tap", extra_headers=key, **ASKED) as stream:
                await anext(aiter(stream.text_stream))
            await until(lambda: pod.metric("baton_subscribers") == 0)
            if key:
                assert await cluster.pool.fetchval(status) == "running"
            else:
                await until_status(cluster, status, "cancelled")


async def until_status(cluster: Cluster, query: str, wanted: str) -> None:
    async def reached() -> bool:
        return bool(await cluster.pool.fetchval(query) == wanted)

    await until(reached)


async def test_a_cut_message_is_an_error_and_its_key_gets_it_again(cluster: Cluster) -> None:
    async with two_pods(cluster) as pods, client_of(pods.first) as first, client_of(pods.second) as second:
        pods.say(*WORDS[:300])
        seen: list[str] = []
        async with first.messages.stream(model="tap", extra_headers=keyed("k"), **ASKED) as stream:
            with pytest.raises(CUT):  # noqa: PT012
                async for text in stream.text_stream:
                    seen.append(text)
                    if len(seen) == 300:
                        await pods.kill()
            assert "".join(seen) == "".join(WORDS[:300])
        pods.say(*WORDS[300:])
        pods.finish()
        async with second.messages.stream(model="tap", extra_headers=keyed("k"), **ASKED) as stream:
            message: Any = await stream.get_final_message()
        assert message.content[0].text == ANSWER
        # It is the same stream, so it has the same id.
        assert message.id == (await stream_id(cluster))


async def stream_id(cluster: Cluster) -> str:
    found = await cluster.pool.fetchval("SELECT id FROM baton.stream")
    return f"msg_{found.hex}"


async def test_a_lost_whole_message_is_asked_for_again_by_the_sdk(cluster: Cluster) -> None:
    async with (
        two_pods(cluster) as pods,
        balancer(pods.first, pods.second, troubles=[LOSES_THE_ANSWER]) as url,
        client_of(url, max_retries=5) as client,
    ):
        asking = asyncio.create_task(client.messages.create(model="tap", extra_headers=keyed("k"), **ASKED))
        pods.say(*WORDS[:300])
        await until_status(cluster, "SELECT count(*)::text FROM baton.stream", "1")
        await pods.kill()
        pods.say(*WORDS[300:])
        pods.finish()
        message: Any = await asking
        assert message.content[0].text == ANSWER
        assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 1


@pytest.mark.timeout(INSTALL_SECONDS + 60)
async def test_the_npm_client_treats_a_cut_as_an_error_and_gets_the_message_again(cluster: Cluster, node: Node) -> None:
    async with (
        two_pods(cluster) as pods,
        node.running("anthropic.mjs", pods.first, pods.second) as client,
    ):
        pods.say(*WORDS[:300])
        await client.says("half")
        await pods.kill()
        broken = await client.says("broken")
        assert broken["text"] == "".join(WORDS[:300])
        pods.say(*WORDS[300:])
        pods.finish()
        whole, refused = (await client.rest())[-2:]
        assert (whole["text"], whole["reason"]) == (ANSWER, "end_turn")
        assert refused == {
            "event": "refused",
            "kind": "NotFoundError",
            "type": "not_found_error",
            "code": "model_not_found",
            "id": True,
        }


PAGE = """<!doctype html><script type="module">
import Anthropic from "/bundle.js";
const report = {};
try {
  const client = new Anthropic({ baseURL: POD, apiKey: KEY, dangerouslyAllowBrowser: true, maxRetries: 0 });
  const thinking = { type: "enabled", budget_tokens: 1024 };
  const messages = [{ role: "user", content: "Hello" }];
  const asked = { model: "think", max_tokens: 2000, thinking, messages };
  const stream = client.messages.stream(asked, { headers: { "anthropic-beta": "b", "Idempotency-Key": "page" } });
  const message = await stream.finalMessage();
  report.content = message.content;
  report.requestId = Boolean(stream.request_id);
  await client.messages.create({ ...asked, model: "nobody" }).catch((error) => { report.type = error.type; });
} catch (error) {
  report.error = String(error);
}
await fetch("/report", { method: "POST", body: JSON.stringify(report) });
</script>"""


@pytest.mark.timeout(INSTALL_SECONDS + 60)
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the SDK was not tried in a browser")
async def test_a_page_of_another_origin_uses_the_sdk(cluster: Cluster, node: Node, tmp_path: Path) -> None:
    reports: list[Any] = []
    site: dict[str, str] = {}
    bundle = node.folder / "bundled"
    bundling = await asyncio.create_subprocess_exec(
        *(node.folder / "node_modules" / ".bin" / "esbuild", node.folder / "node_modules" / "@anthropic-ai" / "sdk"),
        *("--bundle", "--format=esm", "--platform=browser", "--log-level=error"),
        f"--outfile={bundle / 'bundle.js'}",
        cwd=node.folder,
    )
    assert await bundling.wait() == 0

    async def page(_request: Request) -> Response:
        return HTMLResponse(PAGE.replace("POD", json.dumps(site["pod"])).replace("KEY", json.dumps(site["key"])))

    async def take(request: Request) -> Response:
        reports.append(await request.json())
        return Response()

    routes = [Route("/page", page), Route("/report", take, methods=["POST"]), Mount("/", StaticFiles(directory=bundle))]
    await cluster.worker({"think": think})
    async with served(Starlette(routes=routes)) as origin:
        site["key"] = (await make_key(cluster))[1]
        site["pod"] = (await guarded_pod(cluster, allowed_origins=origin)).url
        async with browser(tmp_path / "profile", f"{origin}/page"):
            await until(lambda: bool(reports), START_SECONDS)
    assert reports == [
        {
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                {"type": "text", "text": "You said: Hello"},
            ],
            "requestId": True,
            "type": "not_found_error",
        }
    ]
