"""What only the OpenAI Agents SDK has: handoffs, agents as tools, guardrails, tools of the provider."""

from __future__ import annotations

import asyncio
from typing import Any

import agents
import pytest
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call
from openai.types.responses import ResponseOutputItemDoneEvent
from tests.clients.adapters.runs import Runs, of, said

import baton
from baton.adapters import openai_agents

agents.set_tracing_disabled(True)


def handing_off() -> tuple[agents.Agent[Any], ScriptedModel, ScriptedModel]:
    first = ScriptedModel([[function_call("transfer_to_expert", {}, call_id="h")]])
    second = ScriptedModel([[assistant_message("I know it.")], [assistant_message("And more.")]])
    expert = agents.Agent[Any]("expert", model=second)
    return agents.Agent("desk", model=first, handoffs=[expert]), first, second


@pytest.mark.parametrize("wrapped", [False, True], ids=["agent", "handoff"])
async def test_a_handoff_is_a_custom_event_and_no_call(wrapped: bool) -> None:
    agent, first, second = handing_off()
    if wrapped:
        agent = agent.clone(handoffs=[agents.handoff(agent.handoffs[0])])  # type: ignore[arg-type]
    runs = Runs(openai_agents.generator(agent))
    for _ in range(2):
        found = await runs.run()
        assert of(found, "custom") == [{"type": "custom", "name": "agent", "data": {"name": "expert"}}]
        assert of(found, "tool_call") == of(found, "tool_result") == []
        assert said(found) == "I know it."
    assert (len(first.calls), len(second.calls)) == (1, 1)


async def test_what_comes_at_the_end_goes_to_the_agent_that_answered() -> None:
    agent, first, second = handing_off()
    runs = Runs(openai_agents.generator(agent))
    runs.inputs.add({"type": "message", "message": {"role": "user", "content": "First."}})

    async def run() -> str:
        return said([event async for event in _adding(runs, "I know it.")])

    assert await run() == "I know it.And more."
    assert (len(first.calls), len(second.calls)) == (1, 2)


async def _adding(runs: Runs, after: str) -> Any:
    """Yield a run's events; one more message comes after a text."""
    async for event in runs.start():
        if event == after:
            runs.inputs.add({"type": "message", "message": {"role": "user", "content": "More?"}})
        yield event


async def test_an_agent_as_a_tool_is_one_step() -> None:
    inner = ScriptedModel([[assistant_message("Inside.")]])
    tool = agents.Agent("inner", model=inner).as_tool("ask_inner", "Ask it.")
    model = ScriptedModel([[function_call("ask_inner", {"input": "x"}, call_id="c")], [assistant_message("Outside.")]])
    runs = Runs(openai_agents.generator(agents.Agent("outer", model=model, tools=[tool])))
    for _ in range(2):
        found = await runs.run()
        assert said(found) == "Outside."
        assert [event["result"] for event in of(found, "tool_result")] == ["Inside."]
    assert (len(inner.calls), len(model.calls)) == (1, 2)


async def test_an_approval_inside_of_a_tool_is_refused_by_name() -> None:
    @agents.function_tool(needs_approval=True)
    def delete(name: str) -> str:
        return name

    inner = ScriptedModel([[function_call("delete", {"name": "x"}, call_id="d")]])
    tool = agents.Agent("inner", model=inner, tools=[delete]).as_tool("ask_inner", "Ask it.")
    model = ScriptedModel([[function_call("ask_inner", {"input": "x"}, call_id="c")]])
    with pytest.raises(baton.GenerationError) as caught:
        await Runs(openai_agents.generator(agents.Agent("outer", model=model, tools=[tool]))).run()
    assert "used as a tool" in str(caught.value.operator)


async def test_too_many_turns() -> None:
    @agents.function_tool
    def again() -> str:
        return "again"

    model = ScriptedModel([[function_call("again", {}, call_id=f"c{number}")] for number in range(3)])
    agent = agents.Agent("a", model=model, tools=[again])
    with pytest.raises(baton.GenerationError) as caught:
        await Runs(openai_agents.generator(agent, max_turns=2)).run()
    assert caught.value.code == "max_turns"


async def test_a_guardrail_that_refuses() -> None:
    @agents.input_guardrail
    async def never(*_: Any) -> agents.GuardrailFunctionOutput:
        return agents.GuardrailFunctionOutput(None, tripwire_triggered=True)

    agent = agents.Agent("a", model=ScriptedModel([[assistant_message("x")]]), input_guardrails=[never])
    with pytest.raises(baton.GenerationError) as caught:
        await Runs(openai_agents.generator(agent)).run()
    assert caught.value.code == "guardrail"


async def test_a_tool_of_the_provider_is_a_custom_event() -> None:
    item = {"id": "ws", "status": "completed", "type": "web_search_call", "action": {"type": "search", "query": "bees"}}
    script = ScriptedModel([[assistant_message("Bees.")]])

    async def searching(call: Any) -> Any:
        done: dict[str, Any] = {
            "type": "response.output_item.done",
            "output_index": 0,
            "sequence_number": 0,
            "item": item,
        }
        yield ResponseOutputItemDoneEvent.construct(None, **done)
        named = {name: getattr(call, name) for name in ("previous_response_id", "conversation_id", "prompt")}
        given: Any = (call.system_instructions, call.input, call.model_settings, [], None, [], call.tracing)
        async for event in script.stream_response(*given, **named):
            yield event

    model = ScriptedModel([ModelStep.stream(searching)])
    runs = Runs(openai_agents.generator(agents.Agent("a", model=model)))
    found = [of(await runs.run(), "custom") for _ in range(2)]
    assert found == [[{"type": "custom", "name": "web_search_call", "data": item}]] * 2


async def test_tools_at_the_same_time() -> None:
    order = []

    @agents.function_tool
    async def wait(seconds: float) -> dict[str, float]:
        await asyncio.sleep(seconds)
        order.append(seconds)
        return {"waited": seconds}

    calls = [function_call("wait", {"seconds": seconds}, call_id=f"c{seconds}") for seconds in (0.05, 0.0)]
    model = ScriptedModel([calls, [assistant_message("Done.")]])
    runs = Runs(openai_agents.generator(agents.Agent("a", model=model, tools=[wait])))
    found = [of(await runs.run(), "tool_result") for _ in range(2)]
    assert found[0] == found[1]
    assert [event["result"] for event in found[0]] == [{"waited": 0.05}, {"waited": 0.0}]
    assert order == [0.0, 0.05]


async def test_the_agent_and_the_context_of_a_request() -> None:
    seen = []

    @agents.function_tool
    def who(context: agents.RunContextWrapper[str]) -> str:
        seen.append(context.context)
        return context.context

    def agent(request: baton.GenerationRequest) -> agents.Agent[Any]:
        model = ScriptedModel([[function_call("who", {}, call_id="c")], [assistant_message("You.")]])
        return agents.Agent(f"a{request.run}", model=model, tools=[who])

    generate = openai_agents.generator(agent, options=lambda request: {"context": str(request.stream_id)})
    assert said(await Runs(generate).run()) == "You."
    assert len(seen[0]) == 36
