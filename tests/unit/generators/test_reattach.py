"""Reading a background Response again, in the same run and in a later one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
from tests.support.logbook import until
from tests.support.openai_server import Item, OpenAIServer
from tests.support.pacing import Pace
from tests.support.provider_server import refusal
from tests.unit.generators.generation import Heard, request

from baton.errors import GenerationError
from baton.generators import GenerationRequest, SoFar, reattach
from baton.generators.accounts import default_account
from baton.generators.reattach import ReattachingGenerator, build
from baton.settings import Settings

WORDS = [f"word{number} " for number in range(12)]
TEXT = "".join(WORDS)
ALL = [
    Item(["I ", "think."], "reasoning"),
    Item(WORDS),
    Item(['{"q"', ": 1}"], "function_call", "search"),
    Item(['{"q": 2', "}"], "function_call", "search"),
]
BUSY = refusal(503, {"message": "Busy."})


@dataclass
class Run:
    """One run of a generator, as far as a worker reads it."""

    heard: Heard = field(default_factory=Heard)
    states: list[tuple[int, Any]] = field(default_factory=list)  # after how many events
    after: int | None = None

    async def read(self, generator: ReattachingGenerator, request: GenerationRequest, events: int = 10_000) -> Run:
        """Read until there are this many events, or the end."""
        async with contextlib.aclosing(generator(request)) as items:
            try:
                async for item in items:
                    if isinstance(item, dict) and item["type"] == "state":
                        self.states.append((len(self.heard.events), item["state"]))
                    elif isinstance(item, dict) and item["type"] == "continue":
                        self.after = item["after"]
                    else:
                        self.heard.add(item)
                    if len(self.heard.events) >= events:
                        break
            except GenerationError as error:
                self.heard.error = error
        return self


def later(before: Run) -> GenerationRequest:
    """The request for the run after one that died."""
    (covered, state), tail = before.states[-1], len(before.heard.events)
    return request(run=2, so_far=SoFar(seq=tail), state=state, state_seq=covered)


@contextlib.asynccontextmanager
async def generator_of(server: OpenAIServer) -> AsyncIterator[ReattachingGenerator]:
    settings = Settings.load(openai_base_url=f"{server.url}/v1", openai_model="m", provider_max_retries=0)
    generator = build(settings, default_account(settings, "openai"))
    try:
        yield generator
    finally:
        await generator.aclose()


@pytest.fixture(autouse=True)
def _every_event_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reattach, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(reattach, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(reattach, "_LONGEST_PAUSE_SECONDS", 0.02)


def whole(*runs: Run) -> Heard:
    """What viewers have of several runs, if each one continued after the state of the one before."""
    heard = Heard()
    for run, following in zip(runs, [*runs[1:], None], strict=True):
        kept = run.heard.events if following is None else run.heard.events[: following.after]
        heard.events += kept
    heard.error = runs[-1].heard.error
    return heard


def is_everything(heard: Heard) -> bool:
    calls = [("call_2", "search", '{"q": 1}'), ("call_3", "search", '{"q": 2}')]
    return (heard.reasoning, heard.text, heard.calls) == ("I think.", TEXT, calls)


async def test_the_id_comes_first_and_the_response_is_stored() -> None:
    async with OpenAIServer(*ALL) as server, generator_of(server) as generator:
        run = await Run().read(generator, request({"input": "Hello", "store": False}))
        assert run.states[0][0] == 0
        assert run.states[0][1]["response_id"] == server.only.id
        assert (server.only.body["background"], server.only.body["store"]) == (True, True)
        assert is_everything(run.heard)
        assert (run.after, run.heard.finish_reason, run.heard.usage["output_tokens"]) == (None, "tool_calls", 18)


@pytest.mark.parametrize("events", [1, 2, 3, 9, 14, 15, 16, 17, 18, 20])
async def test_a_later_run_asks_only_for_the_rest_wherever_the_first_one_died(events: int) -> None:
    async with OpenAIServer(*ALL) as server, generator_of(server) as generator:
        before = await Run().read(generator, request(), events)
        after = await Run().read(generator, later(before))
        covered, state = before.states[-1]
        assert after.after == covered
        assert server.cursors == [state["sequence"]]
        assert server.started == 1
        heard = whole(before, after)
        assert is_everything(heard)
        assert (heard.finish_reason, len(heard.of("usage"))) == ("tool_calls", 1)


async def test_leaving_it_does_not_stop_the_response() -> None:
    async with OpenAIServer(*ALL, pace=Pace(allowed=5)) as server, generator_of(server) as generator:
        await Run().read(generator, request(), 3)
        reading = asyncio.create_task(Run().read(generator, request()))
        await until(lambda: server.readers == 1 and server.started == 2)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await until(lambda: not server.readers)
        server.pace.release()
        await until(lambda: not server.live)
        assert {generation.status for generation in server.generations.values()} == {"completed"}
        assert server.cancels == []


async def test_a_broken_connection_is_opened_again_behind_the_last_event() -> None:
    async with OpenAIServer(*ALL, pace=Pace(allowed=4)) as server, generator_of(server) as generator:
        run = Run()
        reading = asyncio.create_task(run.read(generator, request()))
        await until(lambda: len(run.heard.events) == 4)
        server.refusals = [BUSY]
        server.drop()
        server.pace.release()
        await reading
        assert is_everything(run.heard)
        assert len(server.cursors) == 1  # the refused one was not counted
        assert server.started == 1


async def test_an_unknown_response_starts_over() -> None:
    async with OpenAIServer(*ALL) as server, generator_of(server) as generator:
        before = await Run().read(generator, request(), 7)
        server.forget()
        after = await Run().read(generator, later(before))
        assert (after.after, server.started) == (None, 2)
        assert is_everything(after.heard)
        assert after.states[0][1]["response_id"] != before.states[0][1]["response_id"]


@pytest.mark.parametrize("events", [1, 7, 14, 15, 17])
async def test_an_old_response_is_polled_and_its_rest_comes_whole(events: int) -> None:
    async with OpenAIServer(*ALL) as server, generator_of(server) as generator:
        before = await Run().read(generator, request(), events)
        server.streams_recent_only = True
        after = await Run().read(generator, later(before))
        heard = whole(before, after)
        assert (after.heard.error, server.started) == (None, 1)
        assert is_everything(heard)
        assert (heard.finish_reason, heard.usage["output_tokens"], len(heard.of("usage"))) == ("tool_calls", 18, 1)


async def test_a_response_that_is_old_within_a_run_is_polled_until_it_is_over() -> None:
    async with OpenAIServer(*ALL, pace=Pace(allowed=4)) as server, generator_of(server) as generator:
        run = Run()
        reading = asyncio.create_task(run.read(generator, request()))
        await until(lambda: len(run.heard.events) == 4)
        server.streams_recent_only = True
        server.drop()
        await until(lambda: server.retrievals > 2)
        server.pace.release()
        await reading
        assert is_everything(run.heard)


async def test_an_unreachable_provider_ends_the_answer_within_bounds() -> None:
    async with OpenAIServer(*ALL) as server, generator_of(server) as generator:
        before = await Run().read(generator, request(), 7)
        server.refusals = [BUSY] * 100
        after = await Run().read(generator, later(before))
        assert after.heard.code == "provider_error"
        assert server.started == 1


async def test_a_refused_key_ends_the_answer_at_once() -> None:
    async with OpenAIServer(*ALL) as server, generator_of(server) as generator:
        before = await Run().read(generator, request(), 7)
        server.refusals = [refusal(401, {"message": "No."})]
        after = await Run().read(generator, later(before))
        assert after.heard.code == "provider_auth_failed"


async def test_a_response_that_failed_or_was_cancelled_elsewhere_fails() -> None:
    async with OpenAIServer(*ALL) as server, generator_of(server) as generator:
        server.fail_after = 6
        run = await Run().read(generator, request())
        assert (run.heard.code, len(run.heard.events)) == ("provider_error", 6)
        server.fail_after = None
        server.pace.allowed = 4
        cancelled = Run()
        reading = asyncio.create_task(cancelled.read(generator, request()))
        await until(lambda: len(cancelled.heard.events) == 4)
        await generator.stop(cancelled.states[0][1])
        await reading
        assert cancelled.heard.code == "provider_error"


async def test_stop_cancels_once_and_for_all() -> None:
    async with OpenAIServer(*ALL, pace=Pace(allowed=4)) as server, generator_of(server) as generator:
        run = await Run().read(generator, request(), 4)
        state = run.states[0][1]
        server.refused_cancels = [BUSY]
        with pytest.raises(openai.InternalServerError):
            await generator.stop(state)
        for _ in range(2):
            await generator.stop(state)
        assert (server.only.status, server.tokens, server.live) == ("cancelled", 4, [])
        server.only.status = "completed"
        await generator.stop(state)  # which OpenAI refuses
        server.forget()
        await generator.stop(state)
        await generator.stop(state | {"base_url": "http://elsewhere/"})
