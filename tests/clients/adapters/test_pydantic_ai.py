"""What only Pydantic AI has: structured outputs, custom events, retries and external tools."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pydantic_ai as framework
import pytest
from pydantic import BaseModel
from pydantic_ai import CustomEvent, ModelRetry, NativeOutput, RunContext, UsageLimits
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import ExternalToolset
from tests.clients.adapters.runs import Runs, of, said

import baton
from baton.adapters import pydantic_ai
from baton.generators import SoFar


class Script:
    """A model that says `turns`, in their order: a text, or calls with their ids and arguments."""

    def __init__(self, *turns: str | dict[str, tuple[str, dict[str, Any]]]) -> None:
        self.turns = turns
        self.asked: list[Any] = []

    @property
    def model(self) -> FunctionModel:
        return FunctionModel(stream_function=self._say)

    async def _say(self, messages: Any, _info: AgentInfo) -> AsyncIterator[Any]:
        turn = self.turns[sum(message.kind == "response" for message in messages)]
        self.asked.append(messages)
        if isinstance(turn, str):
            for word in turn.split(" "):
                yield f"{word} "
        else:
            for number, (call_id, (name, given)) in enumerate(turn.items()):
                yield {number: DeltaToolCall(name, json.dumps(given), tool_call_id=call_id)}


class City(BaseModel):
    name: str
    people: int


@dataclass
class Progress(CustomEvent):
    done: int


@pytest.mark.parametrize("native", [False, True])
async def test_a_structured_output_is_text(native: bool) -> None:
    city = {"name": "Bern", "people": 130000}
    script = Script(json.dumps(city) if native else {"c": ("final_result", city)})
    runs = Runs(
        pydantic_ai.generator(framework.Agent(script.model, output_type=NativeOutput(City) if native else City))
    )
    for _ in range(2):
        found = await runs.run()
        assert json.loads(said(found)) == city
        assert of(found, "tool_call") == of(found, "tool_result") == []
        assert len(of(found, "usage")) == 1
    assert len(script.asked) == 1


async def test_custom_events_of_tools_come_again_from_the_log() -> None:
    agent = framework.Agent(Script({"c": ("work", {})}, "Done.").model)

    @agent.tool
    async def work(ctx: RunContext[object]) -> str:
        await ctx.emit(Progress(done=3))
        return "worked"

    runs = Runs(pydantic_ai.generator(agent))
    found = await runs.run()
    event = {"type": "custom", "name": "progress", "data": {"done": 3}, "tool_call_id": "c"}
    assert of(found, "custom") == [event]
    assert found.index(event) < found.index({"type": "tool_result", "id": "c", "result": "worked"})
    del event["type"]
    again = await runs.run(SoFar(custom=[event], tool_results=[{"id": "c", "result": "worked"}]))
    kinds = ("custom", "tool_result", "usage")
    assert [of(again, kind) for kind in kinds] == [of(found, kind) for kind in kinds]


@pytest.mark.parametrize("error", [ModelRetry, ToolFailed])
async def test_a_retry_and_a_failure_are_kept(error: type[Exception]) -> None:
    script = Script({"c1": ("work", {"number": 1})}, {"c2": ("work", {"number": 2})}, "Done.")
    agent = framework.Agent(script.model)
    ran = []

    @agent.tool_plain
    def work(number: int) -> City:
        ran.append(number)
        if number == 1:
            raise error("Take another number.")
        return City(name="Bern", people=number)

    runs = Runs(pydantic_ai.generator(agent))
    found = [of(await runs.run(), "tool_result") for _ in range(2)]
    assert found[0] == found[1]
    assert "Take another number." in str(found[0][0]["result"])
    assert found[0][1]["result"] == {"name": "Bern", "people": 2}
    assert ran == [1, 2]


async def test_tools_at_the_same_time_come_in_the_order_of_the_log() -> None:
    script = Script({"slow": ("wait", {"seconds": 0.05}), "fast": ("wait", {"seconds": 0.0})}, "Done.")
    agent = framework.Agent(script.model)

    @agent.tool_plain
    async def wait(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    runs = Runs(pydantic_ai.generator(agent))
    first = of(await runs.run(), "tool_result")
    assert [event["id"] for event in first] == ["fast", "slow"]
    assert of(await runs.run(SoFar(tool_results=first)), "tool_result") == first


async def test_an_external_tool_is_for_the_client() -> None:
    tools = ExternalToolset([ToolDefinition(name="locate", parameters_json_schema={"type": "object"})])
    agent = framework.Agent(Script({"c": ("locate", {})}).model, toolsets=[tools])
    found = await Runs(pydantic_ai.generator(agent)).run()
    assert [event["run_by"] for event in of(found, "tool_call")] == ["client"]
    assert found[-1] == {"type": "finish", "finish_reason": "tool_calls"}


async def test_a_limit_of_usage() -> None:
    agent = framework.Agent(Script({"c": ("work", {})}, "Done.").model)

    @agent.tool_plain
    def work() -> str:
        return "worked"

    with pytest.raises(baton.GenerationError) as caught:
        await Runs(pydantic_ai.generator(agent, usage_limits=UsageLimits(request_limit=1))).run()
    assert caught.value.code == "usage_limit"


async def test_the_system_prompt_is_in_a_conversation_without_one() -> None:
    script = Script("unused", "Hello.")
    agent = framework.Agent(script.model, system_prompt="Be nice.", instructions="Be short.")
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hm?"},
        {"role": "user", "content": "Hi"},
    ]
    await Runs(pydantic_ai.generator(agent), messages).run()
    assert "Be nice." in str(script.asked[0][0])
    assert "Be short." in str(script.asked[0][-1])
