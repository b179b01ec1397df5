"""Makes a generator of an agent of the OpenAI Agents SDK (`pip install "baton-stream[openai-agents]"`).

    from baton.adapters.openai_agents import generator

    generate = generator(agent)

The agents of a stream are copies whose models and function tools are steps (see `agent_steps`).
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import dataclasses
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Final, cast

import orjson
from pydantic import BaseModel

from ..errors import GenerationError
from ..generators import GenerationRequest, Generator, Yielded, conversation
from ..generators.provider import cut_off
from .agent_steps import Calls, Json, Options, Results, Turns, generator_of
from .extras import extra

with extra("openai-agents", "agents"):
    import agents
    from agents.items import TResponseInputItem, TResponseStreamEvent
    from openai.types.responses import ResponseCompletedEvent, ResponseIncompleteEvent

    from ..generators.openai import ResponsesAnswer

__all__ = ["generator"]

_ENDS: Final = {"response.completed": ResponseCompletedEvent, "response.incomplete": ResponseIncompleteEvent}
# Tools that the provider runs. What it reports about them is a custom event.
_PROVIDERS_CALLS: Final = frozenset(
    {"web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "mcp_call"}
)
_REFUSED: Final = (
    agents.InputGuardrailTripwireTriggered,
    agents.OutputGuardrailTripwireTriggered,
    agents.ToolInputGuardrailTripwireTriggered,
    agents.ToolOutputGuardrailTripwireTriggered,
)
# Whether this code runs in a tool. The models of agents that are used as tools are parts of the tool's step.
_in_tool: contextvars.ContextVar[bool] = contextvars.ContextVar("baton_in_tool", default=False)


def generator(
    agent: agents.Agent[Any] | Callable[[GenerationRequest], agents.Agent[Any]],
    *,
    options: Callable[[GenerationRequest], Options] | None = None,
    **fixed: Any,
) -> Generator:
    """Return a generator that runs an agent, or the agent that a function returns for the request.

    `fixed`, and what `options` returns for the request, are arguments of `Runner.run_streamed`, such as `context`,
    `max_turns` and `run_config`.
    """
    # Streams share the connections of one provider.
    fixed["run_config"] = fixed.get("run_config") or agents.RunConfig()
    return generator_of(agent, agents.Agent, _Answer, options=options, fixed=fixed)


class _Answer:
    """One answer: runs the agent until nothing is left to do, and translates its events."""

    def __init__(self, request: GenerationRequest, agent: agents.Agent[Any], options: dict[str, Any]) -> None:
        self.turns = Turns(request)
        self.calls = Calls()
        self.results = Results(request.so_far)
        self.shown: deque[tuple[int, Yielded]] = deque()  # what models have said, with the number of the turn
        self._turn = 0  # whose events come from the framework now, maybe later than the model has said them
        # By the ids of originals and copies. Both are kept, since the id of a deleted one may come again.
        self._copies: dict[int, tuple[agents.Agent[Any], agents.Agent[Any]]] = {}
        config = options["run_config"]
        config = agents.RunConfig(**config) if isinstance(config, Mapping) else config
        model = _Model(config.model, self) if isinstance(config.model, agents.Model) else config.model
        provider = _Provider(config.model_provider, self)
        self._options = {**options, "run_config": dataclasses.replace(config, model=model, model_provider=provider)}
        self._agent = self._copy(agent)
        self._items = _items(conversation.messages(request.input))

    async def events(self) -> AsyncGenerator[Yielded, None]:
        """Yield the events of the answer."""
        yield self.turns.start
        given: Any = self._items
        while given is not None:
            result = agents.Runner.run_streamed(self._agent, given, **self._options)
            async with _events(result) as events:
                async for event in events:
                    for item in self._translate(event):
                        yield item
            if result.interruptions:
                calls = [item.call_id or "" for item in result.interruptions]
                for item in self.turns.approval(calls):
                    yield item
                given = await self._decided(result, calls)
                if given is None:
                    yield self.turns.wait(calls)
            else:
                more = await self.turns.more()
                given = [*result.to_input_list(), *_items(more)] if more else None
                self._agent = result.last_agent

    async def _decided(self, result: agents.RunResultStreaming, calls: list[str]) -> agents.RunState[Any] | None:
        """Return where the agent continues, with the users' decisions; None if some are missing."""
        if any(id(item.agent) not in self._copies for item in result.interruptions):
            raise GenerationError(
                "generator_error",
                "A tool of this agent cannot ask for an approval.",
                operator="an agent that is used as a tool has a tool with needs_approval: use a handoff instead",
            )
        decided = await self.turns.decisions(calls)
        if decided is None:
            return None
        state = result.to_state()
        for item, call in zip(state.get_interruptions(), calls, strict=True):
            if decided[call].get("approved") is True:
                state.approve(item)
            else:
                state.reject(item, rejection_message=decided[call].get("reason"))
        return state

    def _translate(self, event: agents.StreamEvent) -> Iterator[Yielded]:
        if event.type == "raw_response_event":
            while self.shown and self.shown[0][0] == self._turn:
                yield from self.results.rest()
                yield self._numbered(self.shown.popleft()[1])
            self._turn += event.data.type in _ENDS
        elif event.type == "agent_updated_stream_event":
            if event.new_agent is not self._agent:
                self._agent = event.new_agent
                yield {"type": "custom", "name": "agent", "data": {"name": event.new_agent.name}}
        elif isinstance(event.item, agents.ToolCallOutputItem):
            yield from self.results.add(event.item.call_id or "", _json(event.item.output))

    def _numbered(self, event: Yielded) -> Yielded:
        """Number a call of this turn among the calls of the answer."""
        if isinstance(event, str) or event["type"] != "tool_call":
            return event
        key = self._turn, event["index"]
        if "id" in event:
            return self.calls.start(key, event["id"], event["name"], event["arguments_delta"])
        return next(iter(self.calls.extend(key, event["arguments_delta"])))

    def _copy(self, agent: agents.Agent[Any]) -> agents.Agent[Any]:
        """Return a copy of an agent whose models and tools are steps, and those of the agents it hands off to."""
        if id(agent) in self._copies:
            return self._copies[id(agent)][1]
        kept = agent.clone(handoffs=[])
        self._copies[id(agent)] = self._copies[id(kept)] = agent, kept
        if isinstance(agent.model, agents.Model):
            kept.model = _Model(agent.model, self)
        kept.handoffs = [self._handoff(item) for item in agent.handoffs]
        kept.get_all_tools = self._with_steps(kept.get_all_tools)  # type: ignore[method-assign,assignment]
        return kept

    def _handoff(self, item: Any) -> Any:
        if isinstance(item, agents.Agent):
            return self._copy(item)

        async def invoke(context: Any, arguments: str) -> agents.Agent[Any]:
            return self._copy(await item.on_invoke_handoff(context, arguments))

        return dataclasses.replace(item, on_invoke_handoff=invoke)

    def _with_steps(self, all_tools: Callable[[Any], Any]) -> Callable[[Any], Any]:
        async def get(context: Any) -> list[agents.Tool]:
            return [self._tool(tool) for tool in await all_tools(context)]

        return get

    def _tool(self, tool: agents.Tool) -> agents.Tool:
        """Return a tool whose function is a step. Tools of other kinds stay as they are."""
        if not isinstance(tool, agents.FunctionTool):
            return tool
        kept = copy.copy(tool)
        function = kept.on_invoke_tool

        async def invoke(context: Any, arguments: str) -> Any:
            async def call() -> Any:
                token = _in_tool.set(True)
                try:
                    return _json(await function(context, arguments))
                finally:
                    _in_tool.reset(token)

            return await self.turns.tool(tool.name, context.tool_call_id, arguments, call)

        kept.on_invoke_tool = invoke
        return kept


class _Provider(agents.ModelProvider):
    """Finds models by name. Each call of them is a step."""

    def __init__(self, provider: agents.ModelProvider, answer: _Answer) -> None:
        self._provider = provider
        self._answer = answer

    def get_model(self, model_name: str | None) -> agents.Model:
        return _Model(self._provider.get_model(model_name), self._answer)


class _Model(agents.Model):
    """A model whose calls are steps."""

    def __init__(self, model: agents.Model, answer: _Answer) -> None:
        self._model = model
        self._answer = answer
        self.get_retry_advice = model.get_retry_advice  # type: ignore[method-assign]
        self.close = model.close  # type: ignore[method-assign]

    async def get_response(self, *arguments: Any, **named: Any) -> agents.ModelResponse:
        return await self._model.get_response(*arguments, **named)

    async def stream_response(  # type: ignore[override]
        self, instructions: str | None, given: list[TResponseInputItem], *arguments: Any, **named: Any
    ) -> AsyncIterator[TResponseStreamEvent]:
        if _in_tool.get():
            async for event in self._model.stream_response(instructions, given, *arguments, **named):
                yield event
            return

        def ask() -> Any:
            merged = turns.merged(given, _items)
            return contextlib.aclosing(
                cast(Any, self._model.stream_response(instructions, merged, *arguments, **named))
            )

        turns, shown = self._answer.turns, self._answer.shown
        number, said = turns.number, _Said({handoff.tool_name for handoff in arguments[3]})
        async with turns.model(len(given), ask, lambda _: said.kept()) as call:
            if call.live is None:
                shown.extend((number, item) for item in call.kept["said"])
                said.end = _ENDS[call.kept["end"]["type"]].construct(**call.kept["end"])
            else:
                async for event in call.live:
                    shown.extend((number, item) for item in said.take(event))
                    if said.end is not None:
                        break
                    yield event
                else:
                    raise cut_off()
        # Only now: the agent runs no tool before the answer that calls it is kept.
        yield said.end


class _Said:
    """What a model says in one turn, in our events. The calls that hand off to another agent are left out."""

    def __init__(self, handoffs: set[str]) -> None:
        self.end: Any = None
        self._handoffs = handoffs
        self._hidden: set[int] = set()
        self._answer = ResponsesAnswer()
        self._joined: list[Yielded] = []

    def take(self, event: TResponseStreamEvent) -> Iterator[Yielded]:
        """Yield our events of an event of the model."""
        for item in self._answer.translate(event):
            if not self._hides(item):
                _join(self._joined, item)
                yield item
        if event.type == "response.output_item.done" and event.item.type in _PROVIDERS_CALLS:
            data = event.item.to_dict(mode="json", warnings=False)
            yield from self._add({"type": "custom", "name": event.item.type, "data": data})
        if event.type in _ENDS:
            self.end = event
            if self._answer.usage is not None:
                yield from self._add(self._answer.usage)
            reason = self._answer.finish_reason
            yield from self._add({"type": "finish", "finish_reason": "stop" if reason == "tool_calls" else reason})

    def kept(self) -> Json:
        """Return what a step keeps."""
        return {"said": self._joined, "end": self.end.to_dict(mode="json", warnings=False)}

    def _add(self, item: Yielded) -> Iterator[Yielded]:
        self._joined.append(item)
        yield item

    def _hides(self, item: Yielded) -> bool:
        if isinstance(item, str) or item["type"] != "tool_call":
            return False
        if item.get("name") in self._handoffs:
            self._hidden.add(item["index"])
        return item["index"] in self._hidden


def _join(joined: list[Yielded], item: Yielded) -> None:
    """Add an event to others. A chunk is joined with the one before it."""
    last = joined[-1] if joined else None
    if isinstance(item, str):
        if isinstance(last, str):
            joined[-1] = last + item
            return
    elif isinstance(last, Mapping) and last["type"] == item["type"]:
        for name in ("delta", "arguments_delta"):
            if name in item and "id" not in item and item.get("index") == last.get("index"):
                joined[-1] = {**last, name: last[name] + item[name]}
                return
    joined.append(item)


@contextlib.asynccontextmanager
async def _events(result: agents.RunResultStreaming) -> AsyncIterator[AsyncIterator[agents.StreamEvent]]:
    """Give the events of a run. A caller that leaves early ends the run, and waits for that.

    Raises:
        GenerationError: the run ended by an error of the framework.
    """
    events = cast("AsyncGenerator[agents.StreamEvent, None]", result.stream_events())
    try:
        yield events
    except agents.MaxTurnsExceeded as error:
        raise GenerationError("max_turns", "The agent took more turns than it may.") from error
    except _REFUSED as error:
        raise GenerationError("guardrail", "A guardrail of the agent refused this.") from error
    except (agents.ModelBehaviorError, agents.ModelRefusalError) as error:
        raise GenerationError("provider_error", "The model sent something that the agent cannot use.") from error
    finally:
        if not result.is_complete:
            result.cancel()
        await events.aclose()


def _items(messages: list[Json]) -> list[TResponseInputItem]:
    """Return chat messages as input items."""
    return cast("list[TResponseInputItem]", conversation.for_responses({"messages": messages}).get("input", []))


def _json(output: Any) -> Any:
    """Return the output of a tool as JSON. What JSON cannot express is the text that the model would get."""
    if isinstance(output, list | tuple):
        return [_json(item) for item in output]
    if isinstance(output, BaseModel):
        return output.model_dump(mode="json", exclude_none=True)
    try:
        orjson.dumps(output)
    except TypeError:
        return str(output)
    return output
