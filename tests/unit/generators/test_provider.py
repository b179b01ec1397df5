"""What is true of every adapter: the same faults, on real sockets, through the official SDKs."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from tests.support.logbook import DEADLINE_SECONDS
from tests.support.provider_server import ProviderServer, Reply, data_frames, event_frames, refusal
from tests.unit.generators.generation import hear, request

from baton.generators import Generator, close_generators, load_generators
from baton.generators.sdk_errors import public
from baton.settings import Settings

KEY = "sk-test-0123456789abcdef0123456789abcdef"


def chat_chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def text_delta(delta: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": delta}}


@dataclass(frozen=True)
class Api:
    """One provider's API: how to reach it, and its words for the parts of an answer."""

    name: str
    settings: dict[str, Any]
    path: str
    begin: Sequence[bytes]
    end: Sequence[bytes]
    error_event: Sequence[bytes]


APIS = [
    Api(
        "openai",
        {"openai_api": "responses"},
        "/v1",
        event_frames(
            {"type": "response.output_text.delta", "delta": "Hel", "output_index": 0, "sequence_number": 1},
            {"type": "response.output_text.delta", "delta": "lo", "output_index": 0, "sequence_number": 2},
        ),
        event_frames({"type": "response.completed", "sequence_number": 3, "response": {"status": "completed"}}),
        event_frames(
            {"type": "error", "code": "server_error", "message": "at http://10.0.0.9/x", "sequence_number": 3}
        ),
    ),
    Api(
        "openai",
        {"openai_api": "chat"},
        "/v1",
        data_frames(chat_chunk({"role": "assistant", "content": "Hel"}), chat_chunk({"content": "lo"})),
        data_frames(chat_chunk({}, "stop"), done=True),
        data_frames({"error": {"message": "at http://10.0.0.9/x", "code": "server_error"}}),
    ),
    Api(
        "anthropic",
        {},
        "",
        event_frames(
            {"type": "message_start", "message": {"usage": {"input_tokens": 3, "output_tokens": 1}}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            text_delta("Hel"),
            {"type": "ping"},
            text_delta("lo"),
        ),
        event_frames(
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
            {"type": "message_stop"},
        ),
        event_frames({"type": "error", "error": {"type": "overloaded_error", "message": "at http://10.0.0.9/x"}}),
    ),
]


@pytest.fixture(params=APIS, ids=["responses", "chat", "messages"])
def api(request: pytest.FixtureRequest) -> Api:
    assert isinstance(request.param, Api)
    return request.param


@asynccontextmanager
async def generator_for(api: Api, url: str, **settings: Any) -> AsyncIterator[Generator]:
    chosen = {
        f"{api.name}_api_key": KEY,
        f"{api.name}_base_url": f"{url}{api.path}",
        f"{api.name}_model": "a-model",
        "provider_max_retries": 0,
        **api.settings,
        **settings,
    }
    generators = load_generators(Settings.load(**chosen))
    try:
        yield generators[api.name]
    finally:
        await close_generators(generators)


async def test_a_whole_answer(api: Api) -> None:
    async with (
        ProviderServer(Reply([*api.begin, *api.end])) as server,
        generator_for(api, server.url) as generate,
    ):
        heard = await hear(generate)
        again = await hear(generate, [{"role": "user", "content": "And again."}])
    assert (heard.text, heard.finish_reason, heard.error) == ("Hello", "stop", None)
    assert again.text == "Hello"
    # Before its third major release, OpenAI's SDK closed the connection at `[DONE]`.
    closed = api.settings.get("openai_api") == "chat" and openai.VERSION < "3"
    assert server.connections == (2 if closed else 1), "a finished answer leaves its connection to the next request"
    first, second = (item.body for item in server.requests)
    assert first["stream"] is True
    assert first["model"] == "a-model"
    assert first.get("messages", first.get("input")) == [{"role": "user", "content": "Say hello."}]
    assert second.get("messages", second.get("input")) == [{"role": "user", "content": "And again."}]


async def test_an_object_is_the_body(api: Api) -> None:
    given = {
        "model": "another",
        "messages": "Say hello.",
        "temperature": 0.5,
        "an_extension": {"x": 1},
        "stream": False,
    }
    async with (
        ProviderServer(Reply([*api.begin, *api.end])) as server,
        generator_for(api, server.url) as generate,
    ):
        heard = await hear(generate, given)
    body = server.requests[0].body
    assert heard.error is None
    assert (body["model"], body["temperature"], body["an_extension"]) == ("another", 0.5, {"x": 1})
    assert body["stream"] is True
    assert body.get("messages", body.get("input")) == [{"role": "user", "content": "Say hello."}]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (None, "The input must be a text, a list of messages, or an object with messages."),
        (7, "The input must be a text, a list of messages, or an object with messages."),
        (
            {"messages": "x", "extra_headers": {}, "n": 2},
            "The input cannot set 'extra_headers', 'n'.",
        ),
        ({"messages": "x", "model": 3}, 'The input\'s "model" must be a string.'),
    ],
)
async def test_an_input_that_cannot_be_sent(api: Api, given: Any, sentence: str) -> None:
    async with ProviderServer(Reply()) as server, generator_for(api, server.url) as generate:
        heard = await hear(generate, given)
    assert heard.error is not None
    assert (heard.code, heard.error.message) == ("invalid_input", sentence)
    assert server.requests == []


async def test_no_model_is_named(api: Api) -> None:
    async with (
        ProviderServer(Reply()) as server,
        generator_for(api, server.url, **{f"{api.name}_model": ""}) as generate,
    ):
        heard = await hear(generate)
    assert heard.code == "provider_not_configured"
    assert str(heard.error) == "The request names no model, and there is no default."
    assert heard.error is not None
    assert f"BATON_{api.name.upper()}_MODEL" in (heard.error.operator or "")


@pytest.mark.parametrize(
    ("reply", "code", "said"),
    [
        (
            refusal(429, {"message": "slow down"}, retry_after="20"),
            "provider_rate_limited",
            "wait 20 seconds",
        ),
        (refusal(429, {"message": "slow down"}), "provider_rate_limited", "limiting requests."),
        (refusal(401, {"message": f"wrong key: {KEY}"}), "provider_auth_failed", "refused the credentials"),
        (refusal(403, {"message": "not for you"}), "provider_auth_failed", "refused the credentials"),
        (
            refusal(400, {"message": "Too  many\ntokens."}),
            "provider_invalid_request",
            "400): Too many tokens.",
        ),
        (refusal(404, {"message": f"{KEY} at http://a.b/c"}), "provider_invalid_request", "404): … at …"),
        (refusal(500, {"message": "at http://10.0.0.9/x"}), "provider_error", "failed with status 500."),
        (
            Reply([b"<html>"], status=502, content_type="text/html"),
            "provider_error",
            "failed with status 502.",
        ),
        (refusal(408, {"message": "too slow"}), "provider_timeout", "did not answer in time."),
    ],
    ids=["429-wait", "429", "401", "403", "400", "404", "500", "502-html", "408"],
)
async def test_a_refusal(api: Api, reply: Reply, code: str, said: str) -> None:
    async with ProviderServer(reply) as server, generator_for(api, server.url) as generate:
        heard = await hear(generate)
    assert heard.code == code
    assert said in str(heard.error)
    assert KEY not in str(heard.error)
    assert "://" not in str(heard.error)
    assert heard.events == []
    assert len(server.requests) == 1


async def test_a_passing_refusal_is_retried(api: Api) -> None:
    busy = refusal(429, {"message": "slow down"}, retry_after_ms="1")
    async with (
        ProviderServer(busy, Reply([*api.begin, *api.end])) as server,
        generator_for(api, server.url, provider_max_retries=1) as generate,
    ):
        heard = await hear(generate)
    assert heard.text == "Hello"
    assert len(server.requests) == 2


async def test_a_refused_connection(api: Api) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Bound and not listening, so that nobody else can take the port.
        async with generator_for(api, f"http://127.0.0.1:{taken.getsockname()[1]}") as generate:
            heard = await hear(generate)
    assert (heard.code, str(heard.error)) == (
        "provider_unreachable",
        "The model provider cannot be reached.",
    )


@pytest.mark.parametrize("ending", ["abort", "end"])
async def test_an_answer_that_is_cut_off(api: Api, ending: Any) -> None:
    """A clean end of the body is no better than a reset: the provider has not said that it was done."""
    async with (
        ProviderServer(Reply(api.begin, ending=ending)) as server,
        generator_for(api, server.url) as generate,
    ):
        heard = await hear(generate)
    assert (heard.text, heard.code) == ("Hello", "provider_cut_off")
    assert heard.finish_reason is None


async def test_a_frame_that_is_cut_in_two(api: Api) -> None:
    frames = [*api.begin[:-1], api.begin[-1][:-12]]
    async with ProviderServer(Reply(frames)) as server, generator_for(api, server.url) as generate:
        heard = await hear(generate)
    assert (heard.text, heard.code) == ("Hel", "provider_cut_off")


async def test_a_frame_that_is_not_json(api: Api) -> None:
    frames = [*api.begin, b"event: content_block_delta\ndata: {not json\n\n"]
    async with ProviderServer(Reply(frames)) as server, generator_for(api, server.url) as generate:
        heard = await hear(generate)
    assert (heard.text, heard.code) == ("Hello", "provider_error")


@pytest.mark.parametrize("ending", ["end", "hang"])
async def test_an_error_event_in_mid_answer(api: Api, ending: Any) -> None:
    async with (
        ProviderServer(Reply([*api.begin, *api.error_event], ending=ending)) as server,
        generator_for(api, server.url) as generate,
    ):
        heard = await hear(generate)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await server.disconnected.wait() if ending == "hang" else None
    assert (heard.text, heard.code) == ("Hello", "provider_error")
    assert "reported an error during the answer (" in str(heard.error)
    assert "10.0.0.9" not in str(heard.error)


async def test_an_error_after_the_end_is_ignored(api: Api) -> None:
    async with (
        ProviderServer(Reply([*api.begin, *api.end], ending="abort")) as server,
        generator_for(api, server.url) as generate,
    ):
        heard = await hear(generate)
    assert (heard.text, heard.finish_reason, heard.error) == ("Hello", "stop", None)


@pytest.mark.parametrize("silent", [True, False], ids=["no-answer", "mid-answer"])
async def test_a_silent_provider(api: Api, silent: bool) -> None:
    reply = Reply(silent=True, ending="hang") if silent else Reply(api.begin, ending="hang")
    async with (
        ProviderServer(reply) as server,
        generator_for(api, server.url, provider_timeout_seconds=1) as generate,
    ):
        heard = await hear(generate)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await server.disconnected.wait()
    assert heard.code == "provider_timeout"
    assert heard.text == ("" if silent else "Hello")


async def leave_by_closing(generate: Generator) -> None:
    running = generate(request("Say hello."))
    async for _ in running:
        break
    await running.aclose()


async def leave_by_cancelling(generate: Generator) -> None:
    begun = asyncio.Event()

    async def consume() -> None:
        async for _ in generate(request("Say hello.")):
            begun.set()

    task = asyncio.create_task(consume())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("leave", [leave_by_closing, leave_by_cancelling])
async def test_leaving_closes_the_connection_at_once(api: Api, leave: Callable[[Generator], Any]) -> None:
    async with (
        ProviderServer(Reply(api.begin, ending="hang")) as server,
        generator_for(api, server.url) as generate,
    ):
        async with asyncio.timeout(DEADLINE_SECONDS):
            await leave(generate)
            await server.disconnected.wait()


async def test_leaving_before_the_answer_begins(api: Api) -> None:
    async with (
        ProviderServer(Reply(silent=True, ending="hang")) as server,
        generator_for(api, server.url) as generate,
    ):
        task = asyncio.create_task(hear(generate))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await server.requested.wait()
            task.cancel()
            await server.disconnected.wait()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_provider_without_access_control_needs_no_key(api: Api) -> None:
    async with (
        ProviderServer(Reply([*api.begin, *api.end])) as server,
        generator_for(api, server.url, **{f"{api.name}_api_key": None}) as generate,
    ):
        heard = await hear(generate)
    assert heard.text == "Hello"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Unknown parameter: 'foo'.", "Unknown parameter: 'foo'."),
        ("The model `gpt-4.1` does not exist.", "The model `gpt-4.1` does not exist."),
        ("see https://platform.example/account/api-keys now", "see … now"),
        ("dial tcp 10.1.2.3:8080: refused", "dial tcp … refused"),
        ("no route to gpu-7.models.svc.cluster.local today", "no route to … today"),
        ("vllm-3:8000 is down", "… is down"),
        (f"Bearer abc and {KEY} and {'a1' * 20}", "… and … and …"),
        ("x " * 400, "x " * 149 + "x…"),
    ],
)
def test_the_shown_part_of_a_providers_message(message: str, shown: str) -> None:
    assert public(message) == shown
