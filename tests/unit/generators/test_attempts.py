"""Calls of models before an answer begins: what is repeated, where, and what is recorded."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any
from uuid import uuid4

import pytest
from tests.support.logbook import DEADLINE_SECONDS, until
from tests.support.provider_server import ProviderServer, Reply, event_frames, refusal
from tests.unit.generators.generation import Heard, hear, request
from tests.unit.generators.test_provider import APIS, KEY, Api

from baton.errors import GenerationError
from baton.generators import GenerationRequest, Generator, Yielded, attempts, close_generators, load_generators
from baton.generators.answer_record import AnswerRecord
from baton.generators.attempts import Candidate, Patience
from baton.generators.concurrency import Concurrency
from baton.generators.openai import OpenAIProvider
from baton.generators.preset import Preset
from baton.generators.provider import Provider
from baton.generators.requested_model import RequestedModel
from baton.settings import Settings

BUSY = refusal(429, {"message": "slow down"})
HELLO = [{"role": "user", "content": "Say hello."}]
DOWN = refusal(503, {"message": "at http://10.0.0.9/x"})


@pytest.fixture(params=APIS, ids=["responses", "chat", "messages"])
def api(request: pytest.FixtureRequest) -> Api:
    assert isinstance(request.param, Api)
    return request.param


@pytest.fixture
def any_api(request: pytest.FixtureRequest) -> Api:
    """One of the APIs: each case of a table gets the next one, since each case makes clients, which takes long."""
    case: int = max(request.node.callspec.indices.values())
    return APIS[case % len(APIS)]


@pytest.fixture
def unused_address() -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening, so that nobody else can take the port
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@dataclass
class Clock:
    """A clock that only its own sleeps move."""

    now: float = 0.0
    pauses: list[float] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def patience(self, retries: int = 2, seconds: float = 30) -> Patience:
        return Patience(retries, seconds, self.sleep, lambda: self.now)


@dataclass
class Models:
    """Presets of one API, each with a server of its own, and the record of the last answer."""

    generators: Mapping[str, Generator]
    clock: Clock
    record: AnswerRecord = field(default_factory=AnswerRecord)

    async def hear(self, name: str = "first", given: Any = "Say hello.") -> Heard:
        self.record = AnswerRecord()
        self.record.enter()
        return await hear(self.generators[name], given)

    @property
    def failed(self) -> list[tuple[str, str, str]]:
        return [(call.name, call.code, call.then) for call in self.record.failed_calls]


@asynccontextmanager
async def models(
    api: Api, *servers: ProviderServer, patience: Mapping[str, float] | None = None, **entries: Mapping[str, Any]
) -> AsyncIterator[Models]:
    """Load `first`, `second` … for the servers. Each falls back on the next one, unless its entry says otherwise."""
    names = ["first", "second", "third"][: len(servers)]
    made: dict[str, Any] = {}
    for name, following, server in zip(names, [*names[1:], None], servers, strict=True):
        made[name] = {"generator": api.name, "model": f"{name}-model", "base_url": f"{server.url}{api.path}"}
        made[name] |= {"fallback": [following]} if following else {}
        made[name] |= entries.get(name, {})
    generators = load_generators(Settings.load(models=made, **api.settings))
    clock = Clock()
    for generator in generators.values():
        if isinstance(generator, Preset) and isinstance(generator.generator, Provider):
            generator.generator.patience = clock.patience(**(patience or {}))  # type: ignore[arg-type]
    try:
        yield Models(generators, clock)
    finally:
        await close_generators(generators)


def answering(api: Api) -> Reply:
    return Reply([*api.begin, *api.end], headers={"x-request-id": "req-1", "request-id": "req-1"})


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"retry_after": "7"}, 7, 7.7),
        ({"retry_after": "0.5"}, 0.5, 0.55),
        ({"retry_after": "20", "retry_after_ms": "1500"}, 1.5, 1.65),
        ({"retry_after": formatdate(time.time() - 3600, usegmt=True)}, 1, 1.1),
        ({}, 0.25, 0.5),
    ],
    ids=["seconds", "fraction", "milliseconds", "past-date", "unknown"],
)
async def test_a_model_is_asked_again_when_the_provider_says(
    any_api: Api, headers: dict[str, str], least: float, most: float
) -> None:
    busy = refusal(429, {"message": "slow down"}, **headers)
    async with ProviderServer(busy, answering(any_api)) as server, models(any_api, server) as loaded:
        heard = await loaded.hear()
    (pause,) = loaded.clock.pauses
    assert least <= pause <= most
    assert (heard.text, len(server.requests)) == ("Hello", 2)


@pytest.mark.parametrize("asked", ["31", formatdate(2**31, usegmt=True)], ids=["seconds", "date"])
async def test_a_provider_that_asks_to_wait_too_long_is_not_asked_again(any_api: Api, asked: str) -> None:
    async with (
        ProviderServer(refusal(503, {}, retry_after=asked)) as one,
        ProviderServer(answering(any_api)) as two,
        models(any_api, one, two) as loaded,
    ):
        heard = await loaded.hear()
    assert (loaded.clock.pauses, len(one.requests), heard.text) == ([], 1, "Hello")


async def test_retries_end_and_pauses_grow(api: Api) -> None:
    async with ProviderServer(DOWN) as server, models(api, server, patience={"retries": 4}) as loaded:
        heard = await loaded.hear()
    pauses = loaded.clock.pauses
    assert heard.code == "provider_error"
    assert len(server.requests) == 5
    assert all(2**n * 0.25 <= pause <= 2**n * 0.5 for n, pause in enumerate(pauses))
    assert loaded.failed == [("first", "provider_error", "retry")] * 4 + [("first", "provider_error", "fail")]


async def test_all_waits_together_have_a_bound(api: Api) -> None:
    """It counts for all models: a client does not wait longer because there are more of them."""
    busy = refusal(429, {}, retry_after="9")
    async with (
        ProviderServer(busy) as one,
        ProviderServer(busy) as two,
        models(api, one, two, patience={"retries": 9, "seconds": 22}) as loaded,
    ):
        heard = await loaded.hear()
    assert heard.code == "provider_rate_limited"
    assert len(loaded.clock.pauses) == 2
    assert (len(one.requests), len(two.requests)) == (3, 1)


async def test_models_are_asked_in_order(api: Api) -> None:
    async with (
        ProviderServer(BUSY) as one,
        ProviderServer(DOWN) as two,
        ProviderServer(answering(api)) as three,
        models(api, one, two, three, patience={"retries": 0}, second={"temperature": 0}) as loaded,
    ):
        heard = await loaded.hear()
    asked = [
        (server.requests[0].body["model"], server.requests[0].body.get("temperature")) for server in (one, two, three)
    ]
    assert asked == [("first-model", None), ("second-model", 0), ("third-model", None)]
    assert (heard.text, heard.finish_reason) == ("Hello", "stop")
    found = loaded.record.as_dict()
    assert found is not None
    assert (found["name"], found["provider"], found["request_id"]) == ("third", api.name, "req-1")
    assert found["attempts"] == [
        {
            "name": "first",
            "model": "first-model",
            "error": "provider_rate_limited",
            "status": 429,
            "waited_seconds": 0.0,
        },
        {"name": "second", "model": "second-model", "error": "provider_error", "status": 503, "waited_seconds": 0.0},
    ]


async def test_another_providers_model_may_answer() -> None:
    _, chat, messages = APIS
    async with ProviderServer(BUSY) as one, ProviderServer(answering(messages)) as two:
        entry = {"generator": messages.name, "base_url": two.url}
        async with models(chat, one, two, patience={"retries": 0}, second=entry) as loaded:
            heard = await loaded.hear(given={"messages": HELLO, "max_completion_tokens": 7})
    assert heard.text == "Hello"
    assert (two.requests[0].body["messages"], two.requests[0].body["max_tokens"]) == (HELLO, 7)


async def test_the_last_failure_is_the_streams(api: Api) -> None:
    async with (
        ProviderServer(BUSY) as one,
        ProviderServer(refusal(401, {"message": "no"})) as two,
        models(api, one, two, patience={"retries": 0}) as loaded,
    ):
        heard = await loaded.hear()
    assert heard.code == "provider_auth_failed"
    found = loaded.record.as_dict()
    assert found is not None
    assert (found["name"], found["model"], len(found["attempts"])) == (None, None, 2)


RETRIED, NEXT, NEITHER = (3, 1), (1, 1), (1, 0)


@pytest.mark.parametrize(
    ("reply", "asked"),
    [
        (refusal(408, {}), RETRIED),
        (refusal(409, {}), RETRIED),
        (BUSY, RETRIED),
        (refusal(500, {}), RETRIED),
        (Reply([b"<html>"], status=502, content_type="text/html"), RETRIED),
        (refusal(529, {}), RETRIED),
        (Reply(ending="abort"), RETRIED),
        (Reply(), RETRIED),
        (refusal(429, {"code": "insufficient_quota"}), NEXT),
        (refusal(503, {}, x_should_retry="false"), NEXT),
        (refusal(401, {}), NEXT),
        (refusal(402, {}), NEXT),
        (refusal(403, {}), NEXT),
        (refusal(404, {}), NEXT),
        (refusal(400, {}), NEITHER),
        (refusal(400, {"code": "context_length_exceeded"}), NEITHER),
        (refusal(400, {"code": "content_policy_violation"}), NEITHER),
        (refusal(413, {}), NEITHER),
        (refusal(422, {}), NEITHER),
    ],
    ids=lambda value: None if isinstance(value, tuple) else f"{value.status}-{value.ending}",
)
async def test_what_is_retried_and_what_falls_back(any_api: Api, reply: Reply, asked: tuple[int, int]) -> None:
    async with (
        ProviderServer(reply) as one,
        ProviderServer(answering(any_api)) as two,
        models(any_api, one, two) as loaded,
    ):
        heard = await loaded.hear()
    assert (len(one.requests), len(two.requests)) == asked
    assert (heard.text == "Hello") is (asked is not NEITHER)


@pytest.mark.parametrize(
    ("error", "asked"),
    [("overloaded_error", RETRIED), ("permission_error", NEXT), ("invalid_request_error", NEITHER)],
)
async def test_an_error_as_the_first_event(error: str, asked: tuple[int, int]) -> None:
    """Anthropic accepts a request, and may then report an error in place of the answer. It bills what it has read."""
    api = APIS[2]
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 0}}}
    frames = event_frames(start, {"type": "error", "error": {"type": error, "message": "no"}})
    async with (
        ProviderServer(Reply(frames)) as one,
        ProviderServer(answering(api)) as two,
        models(api, one, two) as loaded,
    ):
        heard = await loaded.hear()
    assert (len(one.requests), len(two.requests)) == asked
    used = [event["input_tokens"] for event in heard.of("usage")]
    assert used == [5] * asked[0] + [3] * asked[1]


async def test_an_unreachable_model_falls_back(api: Api, unused_address: str) -> None:
    async with (
        ProviderServer() as one,
        ProviderServer(answering(api)) as two,
        models(api, one, two, first={"base_url": f"{unused_address}{api.path}"}) as loaded,
    ):
        heard = await loaded.hear()
    assert heard.text == "Hello"
    assert [code for _, code, _ in loaded.failed] == ["provider_unreachable"] * 3


async def test_nothing_is_repeated_after_the_first_event(api: Api) -> None:
    async with (
        ProviderServer(Reply(api.begin, ending="abort")) as one,
        ProviderServer(answering(api)) as two,
        models(api, one, two) as loaded,
    ):
        heard = await loaded.hear()
    assert (heard.text, heard.code) == ("Hello", "provider_cut_off")
    assert (len(one.requests), len(two.requests)) == (1, 0)
    assert loaded.failed == []
    found = loaded.record.as_dict()
    assert found is not None
    assert found["name"] == "first"


async def test_a_wait_ends_at_once_when_it_is_cancelled(api: Api) -> None:
    busy = refusal(429, {}, retry_after="25")
    entry = {"max_concurrency": 1}
    async with (
        ProviderServer(busy) as one,
        ProviderServer(answering(api)) as two,
        models(api, one, two, first=entry) as loaded,
    ):
        preset = loaded.generators["first"]
        assert isinstance(preset, Preset)
        assert isinstance(preset.generator, Provider)
        waits = asyncio.Event()

        async def sleep(seconds: float) -> None:
            waits.set()
            await asyncio.sleep(seconds)

        preset.generator.patience = Patience(2, 30, sleep)
        task = asyncio.create_task(loaded.hear())
        async with asyncio.timeout(DEADLINE_SECONDS / 4):
            await waits.wait()
            assert loaded.record.waiting
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert (len(one.requests), len(two.requests)) == (1, 0)
        assert preset.concurrency.taken == 0
        assert not loaded.record.waiting


async def test_a_model_runs_as_many_streams_as_it_may(api: Api) -> None:
    """Streams of another model that fall back on it count, too."""
    async with (
        ProviderServer(BUSY) as one,
        ProviderServer(Reply(api.begin, ending="hang"), answering(api)) as two,
        models(api, one, two, patience={"retries": 0}, second={"max_concurrency": 1}) as loaded,
    ):
        running = loaded.generators["second"](request("Say hello."))
        assert await anext(running)
        task = asyncio.create_task(loaded.hear())
        await until(lambda: loaded.record.waiting)
        assert (len(one.requests), len(two.requests)) == (1, 1)
        await running.aclose()
        assert (await task).text == "Hello"
        assert len(two.requests) == 2


async def test_an_accounts_key_goes_to_its_own_address_only(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = "sk-own-0123456789abcdef0123456789abcdef"
    monkeypatch.setenv("OWN_KEY", f"{own}\n")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    monkeypatch.setenv(f"{api.name.upper()}_API_KEY", KEY)
    wrong = refusal(401, {"message": f"wrong key: {own}"})
    caplog.set_level(logging.INFO)
    async with (
        ProviderServer(wrong) as one,
        ProviderServer(wrong) as two,
        models(api, one, two, first={"api_key_env": "OWN_KEY"}) as loaded,
    ):
        heard = await loaded.hear()
        shown = f"{heard.error!r} {heard.error} {loaded.generators} {loaded.record.as_dict()} {caplog.text}"
        assert "ERROR" in {item.levelname for item in caplog.records if item.name.startswith("baton")}
    first, second = one.requests[0].headers, two.requests[0].headers
    assert own in {first.get("x-api-key"), (first.get("authorization") or "").removeprefix("Bearer ")}
    assert not any(secret in value for value in second.values() for secret in (own, KEY))
    assert "openai-organization" not in first.keys() | second.keys()
    assert own not in shown
    assert KEY not in shown


async def test_equal_accounts_share_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, key in {"OWN_KEY": "k1", "SAME_KEY": "k1", "OTHER_KEY": "k2"}.items():
        monkeypatch.setenv(name, key)
    entries: dict[str, Any] = {
        "plain": "openai",
        "a": {"generator": "openai", "api_key_env": "OWN_KEY"},
        "b": {"generator": "openai", "api_key_env": "SAME_KEY", "fallback": ["hidden"]},
        "c": {"generator": "openai", "api_key_env": "OTHER_KEY"},
        "hidden": {"generator": "openai", "base_url": "http://localhost:1/v1"},
    }
    settings = Settings.load(models=entries, openai_api_key="k0", enabled_generators="openai,plain,a,b,c")
    generators = load_generators(settings)
    presets = {name: item for name, item in generators.items() if isinstance(item, Preset)}
    assert presets.keys() == {"plain", "a", "b", "c"}
    assert presets["plain"].generator is generators["openai"]
    assert presets["a"].generator is presets["b"].generator is not presets["c"].generator
    (hidden,) = presets["b"].fallback
    held = {id(item): item for item in [*presets["b"].parts, presets["c"].generator, generators["openai"]]}
    assert len(held) == 4
    assert id(hidden.generator) in held
    await close_generators(generators)
    for provider in held.values():
        assert isinstance(provider, OpenAIProvider)
        assert provider.client.is_closed()


async def test_an_answer_that_continues_says_so_before_the_usage_of_failed_calls() -> None:
    async def fails(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "usage", "input_tokens": 3}
        raise GenerationError("provider_error", "It failed.")

    async def continues(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "continue", "after": 2}
        yield "more"

    again = GenerationRequest(uuid4(), "Hello", {}, run=2)
    candidates = [
        Candidate(name, RequestedModel(name, "openai"), ask, again, Concurrency())
        for name, ask in {"first": fails, "second": continues}.items()
    ]
    found = [item async for item in attempts.answer(candidates, Patience(0, 1))]
    assert found == [{"type": "continue", "after": 2}, {"type": "usage", "input_tokens": 3}, "more"]
