"""What the adapters share, without a framework."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from baton.adapters.agent_steps import Calls, Results, Turns
from baton.adapters.extras import extra
from baton.generators import GenerationRequest, SoFar
from baton.generators.inbox import Inbox, InputMemory
from baton.generators.steps import StepMemory, Steps

EXTRAS = {
    "langgraph": ("langgraph", "langgraph"),
    "litellm": ("litellm", "litellm"),
    "openai_agents": ("openai-agents", "agents"),
    "pydantic_ai": ("pydantic-ai", "pydantic_ai"),
}


class Stream:
    """A stream in memory: `turns` begins a run of its agent."""

    def __init__(self) -> None:
        self.inputs, self._store, self._id = InputMemory(), StepMemory(), uuid.uuid4()
        self.asked: list[str] = []

    def turns(self) -> Turns:
        return Turns(
            GenerationRequest(self._id, None, {}, steps=Steps(self._store), inbox=Inbox(self.inputs)),
        )

    async def ask(self, turns: Turns, answer: str, *, size: int = 0) -> str:
        """Ask a model that says `answer`."""

        @contextlib.asynccontextmanager
        async def call() -> AsyncIterator[str]:
            self.asked.append(answer)
            yield answer

        async with turns.model(size, call, str) as called:
            return called.kept if called.live is None else called.live


def message(content: str) -> dict[str, Any]:
    return {"type": "message", "message": {"role": "user", "content": content}}


def approval(call: str) -> dict[str, Any]:
    return {"type": "approval", "call_id": call, "approved": True, "reason": None}


@pytest.mark.parametrize("name", EXTRAS)
def test_a_missing_framework_is_named_with_its_extra(name: str) -> None:
    named, module = EXTRAS[name]
    program = f"import sys; sys.modules[{module!r}] = None\nimport baton.adapters.{name}"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert f'This adapter needs the extra {named!r}: pip install "baton-stream[{named}]".' in found.stderr


def test_another_missing_module_is_not_hidden() -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named 'other'"), extra("pydantic-ai", "pydantic_ai"):
        raise ModuleNotFoundError("No module named 'other'", name="other")


def test_calls_are_numbered_over_all_turns() -> None:
    calls = Calls()
    first, second = calls.start((0, 0), "a", "search"), calls.start((1, 0), "b", "search", "{}", run_by="client")
    assert (first["index"], first["run_by"]) == (0, "generator")
    assert (second["index"], second["run_by"], second["arguments_delta"]) == (1, "client", "{}")
    assert [event["index"] for event in calls.extend((0, 0), "x")] == [0]  # type: ignore[index]


def test_results_come_in_the_order_of_the_log() -> None:
    results = Results(SoFar(tool_results=[{"id": "b", "result": 2}, {"id": "a", "result": 1}]))
    shown = [[event["id"] for event in results.add(call, None)] for call in ("c", "a", "b", "d")]
    assert shown == [[], [], ["b", "a", "c"], ["d"]]


def test_results_that_do_not_come_hold_back_no_others_for_ever() -> None:
    results = Results(SoFar(tool_results=[{"id": "lost", "result": 2}]))
    assert not list(results.add("a", 1))
    assert [event["id"] for event in results.rest()] == ["a"]


async def test_a_model_is_asked_once_for_each_turn() -> None:
    stream = Stream()
    for _ in range(2):
        turns = stream.turns()
        assert [await stream.ask(turns, answer) for answer in ("one", "two")] == ["one", "two"]
    assert stream.asked == ["one", "two"]


async def test_an_answer_to_something_else_is_not_found() -> None:
    stream = Stream()
    turns = stream.turns()
    with pytest.raises(ConnectionError):  # the provider fails, and the framework asks again
        async with turns.model(0, lambda: contextlib.nullcontext(""), str):
            raise ConnectionError
    assert await stream.ask(turns, "one") == "one"
    assert await stream.ask(turns, "two") == "two"
    turns = stream.turns()
    assert await stream.ask(turns, "other") == "other"
    assert await stream.ask(turns, "three") == "three"


async def test_a_model_that_is_left_keeps_nothing_and_is_closed() -> None:
    stream, closed = Stream(), asyncio.Event()

    @contextlib.asynccontextmanager
    async def call() -> AsyncIterator[str]:
        try:
            yield "half"
        finally:
            closed.set()

    async def read() -> None:
        async with stream.turns().model(0, call, str):
            await asyncio.Event().wait()

    reading = asyncio.create_task(read())
    await asyncio.sleep(0.01)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert closed.is_set()
    assert await stream.ask(stream.turns(), "whole") == "whole"


async def test_messages_go_to_the_next_call_in_each_run() -> None:
    stream = Stream()
    for run in range(2):
        turns = stream.turns()
        await stream.ask(turns, "one", size=1)
        if run == 0:
            stream.inputs.add(message("Be quick."))
            stream.inputs.add("Please.")
        await stream.ask(turns, "two", size=3)
        merged = turns.merged(["a", "b", "c", "d"], lambda said: [item["content"] for item in said])
        assert merged == ["a", "b", "c", "Be quick.", "Please.", "d"]
        assert await turns.more() == []


async def test_what_comes_at_the_end_is_returned_in_each_run() -> None:
    stream = Stream()
    stream.inputs.add(message("One more."))
    assert [await stream.turns().more() for _ in range(2)] == [[{"role": "user", "content": "One more."}]] * 2


async def test_decisions_are_complete_or_none() -> None:
    stream = Stream()
    assert await stream.turns().decisions(["a", "b"]) is None
    stream.inputs.add(approval("b"))
    stream.inputs.add(message("Hurry."))
    assert await stream.turns().decisions(["a", "b"]) is None
    stream.inputs.add(approval("a"))
    for _ in range(2):
        turns = stream.turns()
        assert set(await turns.decisions(["a", "b"]) or ()) == {"a", "b"}
        await stream.ask(turns, "one", size=0)
        assert turns.merged([], lambda said: [item["content"] for item in said]) == ["Hurry."]
