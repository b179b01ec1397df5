"""Streams in memory: what a generator yields, what a kill leaves, and what waits."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncGenerator, Iterator
from typing import Any, ClassVar

import asyncpg
import orjson
import pytest

import baton
from baton import GenerationError, GenerationRequest, Yielded
from baton.errors import InvalidEvent
from baton.generators import Generator
from baton.testing import SimulatedStream, run, run_sync
from baton.testing.memory import MemoryWaits

WORDS = ["one ", "two ", "three "]


async def words(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    for word in WORDS:
        yield word


def plain_words(_request: GenerationRequest) -> Iterator[Yielded]:
    yield from WORDS


class Words:
    """An object, as adapters return one."""

    continues: ClassVar[bool] = True

    async def __call__(self, request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        yield {"type": "continue", "after": request.so_far.seq}
        for word in WORDS[len(request.so_far.text.split()) :]:
            yield word


@baton.continues
async def saving(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    yield {"type": "continue", "after": request.state_seq}
    for number in range(request.state or 0, 3):
        yield WORDS[number]
        yield {"type": "state", "state": number + 1}


@baton.continues
def approving(request: GenerationRequest) -> Iterator[Yielded]:
    yield {"type": "continue", "after": request.so_far.seq}
    if request.state is None:
        yield "May I? "
        yield {"type": "wait", "for": {"calls": ["c"]}, "until": 60, "state": "asked"}
    yield f"{request.receive(0)}"


async def talking(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    yield "Who? "
    yield "Say. "
    yield f"Hi {await request.receive(3600)}."


def plain_talking(request: GenerationRequest) -> Iterator[Yielded]:
    yield "Who? "
    yield "Say. "
    yield f"Hi {request.receive(3600)}."


def kinds(stream: SimulatedStream) -> list[str]:
    return [event["type"] for event in stream.events]


@pytest.mark.parametrize("generate", [words, plain_words, Words()])
async def test_a_generator_runs_to_its_end(generate: Generator) -> None:
    stream = await run(generate, {"q": 1})
    assert (stream.status, stream.code, stream.text, stream.runs) == ("completed", "stop", "one two three ", 1)
    assert [event["seq"] for event in stream.events] == [1, 2, 3, 4]
    assert stream.snapshot["last_event_id"] == 4
    assert (stream.killed, stream.waiting, stream.receiving, stream.exception) == (False, None, False, None)


async def test_a_request_has_what_the_creator_gave() -> None:
    approval = baton.Approval("a", "c", "search", {"q": 1})
    seen: list[GenerationRequest] = []

    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        seen.append(request)
        yield "x"

    await run(generate, ("a", 1), metadata={"user": "ann"}, tenant="acme", approvals=[approval])
    (request,) = seen
    assert (request.input, request.metadata, request.tenant) == (["a", 1], {"user": "ann"}, "acme")
    assert request.approvals == (approval,)


@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize("generate", [words, plain_words])
async def test_an_unmarked_generator_starts_over_after_a_kill(generate: Generator, after: int) -> None:
    stream = await run(generate, kill_after=after)
    assert (stream.killed, stream.status, stream.text) == (True, "running", "".join(WORDS[:after]))
    await stream.continue_()
    assert (stream.text, stream.runs, stream.status) == ("one two three ", 2, "completed")
    assert ("reset" in kinds(stream)) == (after > 0)


async def test_a_generator_continues_from_its_state() -> None:
    stream = await run(saving, kill_after=2)
    # The state that follows event 2 was not saved.
    assert (stream.text, stream.state) == ("one two ", 1)
    await stream.continue_(kill_after=4)
    assert (stream.killed, kinds(stream)) == (True, ["text", "text", "resumed", "text"])
    await stream.continue_()
    assert (stream.text, stream.state, stream.runs) == ("one two three ", 3, 3)
    assert kinds(stream).count("reset") == 0


async def test_a_kill_loses_what_was_not_flushed() -> None:
    stream = await run(words, kill_after=3, flush_every=2)
    assert stream.text == "one two "


async def test_a_step_runs_once_and_a_killed_run_keeps_none() -> None:
    ran: list[str] = []

    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield str(await request.step("one", ran.append, "one"))
        yield "x"
        yield str(await request.step("two", ran.append, "two"))

    stream = await run(generate, kill_after=1)
    await stream.continue_()
    assert ran == ["one", "two"]
    assert [(step.name, step.ran, step.kept, step.result) for step in stream.steps] == [
        ("one", 1, 1, None),
        ("two", 1, 0, None),
    ]


async def test_an_attempt_counts_kills_without_progress() -> None:
    attempts: list[tuple[int, int]] = []

    @baton.continues
    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        attempts.append((request.run, request.attempt))
        yield {"type": "continue", "after": request.so_far.seq}
        yield "x"

    stream = await run(generate, kill_after=0)
    await stream.continue_(kill_after=2)  # resumed, and one event
    await stream.continue_()
    assert attempts == [(1, 1), (2, 2), (3, 1)]


async def test_what_is_no_event_ends_the_stream() -> None:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield "a"
        yield {"type": "bogus"}

    stream = await run(generate)
    assert (stream.status, stream.code, stream.text) == ("failed", "invalid_event", "a")
    assert isinstance(stream.exception, InvalidEvent)
    assert "test_stream.py:" in str(stream.exception)


@pytest.mark.parametrize(
    ("raised", "code"), [(GenerationError("busy", "Busy."), "busy"), (ValueError("secret"), "generator_error")]
)
async def test_an_exception_is_shown_to_the_test_only(raised: Exception, code: str) -> None:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield "a"
        raise raised

    stream = await run(generate)
    assert (stream.code, stream.exception) == (code, raised)
    assert "secret" not in orjson.dumps(stream.events).decode()


async def test_a_stream_waits_for_an_input() -> None:
    stream = await run(approving)
    assert stream.status == "waiting"
    assert stream.waiting is not None
    assert stream.waiting["for"] == {"calls": ["c"]}
    assert stream.waiting["until"] > datetime.datetime.now(datetime.UTC)
    await stream.send({"yes": True})
    assert stream.text == "May I? {'yes': True}"
    assert stream.code == "stop"
    assert [event.get("reason") for event in stream.events if event["type"] == "resumed"] == ["input"]


async def test_a_wait_ends_at_its_deadline() -> None:
    stream = await run(approving)
    await stream.expire()
    assert stream.text == "May I? None"
    assert [event.get("reason") for event in stream.events if event["type"] == "resumed"] == ["deadline"]


async def test_a_wait_without_a_deadline_fails_in_the_end() -> None:
    @baton.continues
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "usage", "input_tokens": 3}
        yield {"type": "wait", "for": None}

    stream = await run(generate)
    await stream.expire()
    assert (stream.status, stream.code, stream.usage) == ("failed", "wait_timeout", {"input_tokens": 3})
    with pytest.raises(ValueError, match="has ended"):
        await stream.send(1)


async def test_an_input_that_came_meanwhile_is_not_waited_for() -> None:
    stream = await run(approving, inputs_after={1: "early"})
    assert stream.text == "May I? early"
    assert "waiting" not in kinds(stream)


@pytest.mark.parametrize("generate", [approving, talking, plain_talking])
async def test_replies_are_sent_in_turn(generate: Generator) -> None:
    assert "Bo" in (await run(generate, inputs=["Bo", "never"])).text


@pytest.mark.parametrize("generate", [talking, plain_talking])
async def test_a_generator_is_held_while_it_receives(generate: Generator) -> None:
    stream = await run(generate)
    assert (stream.receiving, stream.status, stream.text) == (True, "running", "Who? Say. ")
    await stream.send("Bo")
    assert (stream.receiving, stream.text) == (False, "Who? Say. Hi Bo.")


@pytest.mark.parametrize("generate", [talking, plain_talking])
async def test_the_time_of_a_receive_passes_at_once(generate: Generator) -> None:
    stream = await run(generate)
    await stream.expire()
    assert stream.text == "Who? Say. Hi None."


@pytest.mark.parametrize("generate", [talking, plain_talking])
async def test_a_generator_that_is_held_can_be_closed(generate: Generator) -> None:
    stream = await run(generate)
    await stream.close()
    assert not stream.receiving


async def test_a_receive_in_another_task_holds_nothing() -> None:
    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        correction = asyncio.ensure_future(request.receive())
        for word in WORDS:
            yield word
            await asyncio.sleep(0)
        yield await correction

    assert (await run(generate, inputs_after={2: "stop"})).text == "one two three stop"


async def test_a_run_that_takes_too_long_is_stopped() -> None:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield "a"
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError, match=r"did not end, wait or receive within 0\.01 seconds"):
        await run(generate, timeout_seconds=0.01)


async def test_what_is_no_generator_is_refused() -> None:
    with pytest.raises(TypeError, match="Pass the function itself"):
        await run(words(GenerationRequest(stream_id=None, input=None, metadata={})))  # type: ignore[arg-type]


async def test_calls_that_make_no_sense_say_why() -> None:
    stream = await run(words)
    with pytest.raises(ValueError, match="was not killed"):
        await stream.continue_()
    with pytest.raises(ValueError, match="no deadline"):
        await stream.expire()
    killed = await run(words, kill_after=1)
    with pytest.raises(ValueError, match="was killed"):
        await killed.send(1)
    with pytest.raises(ValueError, match="flush_every"):
        await run(words, flush_every=0)


@pytest.mark.parametrize("generate", [talking, plain_talking])
def test_a_test_needs_no_event_loop(generate: Generator) -> None:
    stream = run_sync(generate, kill_after=1)
    stream.continue_()
    assert stream.receiving
    stream.send("Bo")
    assert (stream.text, stream.status) == ("Who? Say. Hi Bo.", "completed")


def test_a_stream_that_is_held_can_be_closed_without_an_event_loop() -> None:
    stream = run_sync(talking)
    stream.close()
    assert run_sync(approving).expire().text == "May I? None"


DIALECTS: dict[Any, str] = {
    "native": 'id: 1\ndata: {"type":"text","delta":"one "}\n\n',
    "aisdk": '"type":"text-delta"',
    "aisdk.v3": '0:"three "\ne:{"finishReason":"stop"',
    "aisdk.v4": 'f:{"messageId":"msg_',
    "responses": "event: response.completed",
    "chat": "data: [DONE]",
    "anthropic": "event: message_stop",
    "agui": '"type":"RUN_FINISHED"',
    "langgraph": '"type":"human","name":null',
    "text": "one two three ",
    "durable": '"streamClosed":true',
}


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_stream_is_seen_as_clients_of_each_dialect_do(dialect: Any) -> None:
    seen = (await run(words, "hi")).as_seen_by(dialect)
    assert DIALECTS[dialect] in seen
    assert not seen.cut


async def test_clients_that_know_a_restart_get_the_answer_again() -> None:
    stream = await (await run(words, "hi", kill_after=1)).continue_()
    assert '"type":"MESSAGES_SNAPSHOT","messages":[{"id"' in stream.as_seen_by("agui")
    assert '"attempt":2' in stream.as_seen_by("langgraph")


async def test_clients_that_know_no_restart_are_cut() -> None:
    stream = await (await run(words, kill_after=1)).continue_()
    assert stream.as_seen_by("text") == "one "
    assert stream.as_seen_by("text").cut
    assert stream.as_seen_by("anthropic").cut
    assert "RUN_ERROR" in stream.as_seen_by("agui")
    with pytest.raises(ValueError, match="must be one of native, aisdk"):
        stream.as_seen_by("xml")  # type: ignore[arg-type]


async def test_a_wait_that_the_database_refuses_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be given back otherwise, as a stream that never ran, and refused again."""

    async def refuse(*_arguments: object) -> None:
        raise asyncpg.DataError("refused")

    monkeypatch.setattr(MemoryWaits, "begin", refuse)
    stream = await run(approving)
    assert (stream.status, stream.code, stream.text) == ("failed", "storage_rejected", "May I? ")
