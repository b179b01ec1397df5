"""Makes a generator of an agent of Pydantic AI (`pip install "baton-stream[pydantic-ai]"`).

    from baton.adapters.pydantic_ai import generator

    generate = generator(agent)

The agent runs as it is, with a model around its own, and one more capability: both make calls steps (see
`agent_steps`).
"""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import GenerationError
from ..generators import GenerationRequest, Generator, Yielded, as_generation_error, conversation
from ..generators.provider_answer import usage_event
from .agent_steps import Calls, Json, Options, Results, Turns, generator_of
from .extras import extra

with extra("pydantic-ai", "pydantic_ai"):
    import pydantic_ai
    from pydantic import TypeAdapter
    from pydantic_ai import DeferredToolRequests, DeferredToolResults, ToolDenied, messages
    from pydantic_ai.capabilities import AbstractCapability, ReinjectSystemPrompt
    from pydantic_ai.exceptions import (
        AgentRunError,
        ContentFilterError,
        ModelRetry,
        ToolFailed,
        ToolFailedError,
        ToolRetryError,
        UnexpectedModelBehavior,
        UsageLimitExceeded,
    )
    from pydantic_ai.messages import ModelResponse
    from pydantic_ai.models import CompletedStreamedResponse, ModelRequestParameters, StreamedResponse
    from pydantic_ai.models.wrapper import WrapperModel

    from .pydantic_ai_messages import history_of

__all__ = ["generator"]

_RESPONSE: Final[TypeAdapter[list[messages.ModelMessage]]] = messages.ModelMessagesTypeAdapter
_OUTPUT: Final[TypeAdapter[Any]] = TypeAdapter(messages.ToolReturnContent)
_RETURN: Final[TypeAdapter[Any]] = TypeAdapter(messages.ToolReturn)


def generator(
    agent: pydantic_ai.Agent[Any, Any] | Callable[[GenerationRequest], pydantic_ai.Agent[Any, Any]],
    *,
    options: Callable[[GenerationRequest], Options] | None = None,
    **fixed: Any,
) -> Generator:
    """Return a generator that runs an agent, or the agent that a function returns for the request.

    `fixed`, and what `options` returns for the request, are arguments of `Agent.run_stream_events`, such as `deps`,
    `model` and `usage_limits`.
    """
    return generator_of(agent, pydantic_ai.Agent, _Answer, options=options, fixed=fixed)


class _Answer:
    """One answer: runs the agent until nothing is left to do, and translates its events."""

    def __init__(self, request: GenerationRequest, agent: pydantic_ai.Agent[Any, Any], options: Options) -> None:
        self.turns = Turns(request)
        self.tools = _Steps(self.turns)
        self.usage: deque[Json] = deque()  # of the turns that models have ended
        self.run_by: dict[str, str] = {}  # who runs a tool: "output" makes the call the answer itself
        self._calls = Calls()
        self._results = Results(request.so_far)
        self._logged = [event for event in request.so_far.custom if event.get("tool_call_id")]
        self._turn = 0
        self._reading = False  # a model's answer
        self._agent = agent
        model = _Model(options.get("model") or agent.model or "", self)
        capabilities = [*(options.get("capabilities") or ()), ReinjectSystemPrompt(), self.tools]
        output: Any = [options.get("output_type") or agent.output_type, DeferredToolRequests]
        self._options = {**options, "model": model, "capabilities": capabilities, "output_type": output}
        self._messages = history_of(conversation.messages(request.input))

    async def events(self) -> AsyncGenerator[Yielded, None]:
        """Yield the events of the answer.

        Raises:
            GenerationError: the run ended by an error of the framework.
        """
        yield self.turns.start
        history, decided = self._messages, None
        while True:
            prompt, history = _split(history) if decided is None else (None, history)
            run = self._agent.run_stream_events(
                prompt, message_history=history, deferred_tool_results=decided, **self._options
            )
            with _errors():
                async with run as events:
                    async for event in events:
                        for item in self._translate(event):
                            yield item
            result = events.result
            assert result is not None
            history, decided = result.all_messages(), None
            if isinstance(result.output, DeferredToolRequests):
                for item in self.turns.approval([call.tool_call_id for call in result.output.approvals]):
                    yield item
                if result.output.calls:
                    yield {"type": "finish", "finish_reason": "tool_calls"}
                    return  # the client runs them
                decided = await self._decided(result.output)
                if decided is None:
                    yield self.turns.wait([call.tool_call_id for call in result.output.approvals])
                    return
            elif more := await self.turns.more():
                history = [*history, *history_of(more)]
            else:
                yield {"type": "finish", "finish_reason": "length" if _is_cut(history) else "stop"}
                return

    async def _decided(self, asked: DeferredToolRequests) -> DeferredToolResults | None:
        """Return the users' decisions; None if some are missing."""
        calls = [call.tool_call_id for call in asked.approvals]
        decided = await self.turns.decisions(calls)
        if decided is None:
            return None
        approvals: dict[str, Any] = {
            call: True
            if decided[call].get("approved") is True
            else ToolDenied(decided[call].get("reason") or "The user denied this tool call.")
            for call in calls
        }
        return DeferredToolResults(approvals=approvals)

    def _translate(self, event: Any) -> Iterator[Yielded]:
        match event:
            case messages.PartStartEvent():
                if event.index == 0:
                    yield from self._end_turn()
                    yield from self._results.rest()
                self._reading = True
                yield from self._begin(event.index, event.part)
            case messages.PartDeltaEvent():
                yield from self._extend(event.index, event.delta)
            case messages.PartEndEvent():
                yield from self._complete(event.index, event.part)
            case messages.CustomEvent():
                yield {**_custom(event.name, event.to_payload()), "tool_call_id": event.tool_call_id}
            case messages.FunctionToolResultEvent():
                yield from self._end_turn()
                yield from self._emitted(event.tool_call_id)
                yield from self._results.add(event.tool_call_id, _OUTPUT.dump_python(event.part.content, mode="json"))
            case messages.FunctionToolCallEvent() | messages.OutputToolCallEvent() | pydantic_ai.AgentRunResultEvent():
                yield from self._end_turn()

    def _begin(self, index: int, part: Any) -> Iterator[Yielded]:
        match part:
            case messages.TextPart(content=text) if text:
                yield text
            case messages.ThinkingPart(content=text) if text:
                yield {"type": "reasoning", "delta": text}
            case messages.ToolCallPart():
                args = part.args if isinstance(part.args, str) else json.dumps(part.args) if part.args else ""
                run_by = self.run_by.get(part.tool_name, "generator")
                if run_by != "output":
                    yield self._calls.start((self._turn, index), part.tool_call_id, part.tool_name, args, run_by=run_by)
                elif args:
                    yield args

    def _extend(self, index: int, delta: Any) -> Iterator[Yielded]:
        match delta:
            case messages.TextPartDelta(content_delta=text) if text:
                yield text
            case messages.ThinkingPartDelta(content_delta=text) if text:
                yield {"type": "reasoning", "delta": text}
            case messages.ToolCallPartDelta(args_delta=str(args)) if args:
                if self._calls.index_of((self._turn, index)) is None:
                    yield args  # of the tool that is the answer itself
                yield from self._calls.extend((self._turn, index), args)

    def _complete(self, index: int, part: Any) -> Iterator[Yielded]:
        match part:
            case messages.ToolCallPart() if self.run_by.get(part.tool_name) != "output":
                yield from self._calls.complete((self._turn, index), part.args_as_json_str())
            case messages.NativeToolCallPart():
                yield _custom(part.tool_name, {"id": part.tool_call_id, "arguments": part.args_as_dict()})
            case messages.NativeToolReturnPart():
                result = _OUTPUT.dump_python(part.content, mode="json")
                yield _custom(part.tool_name, {"id": part.tool_call_id, "result": result})

    def _end_turn(self) -> Iterator[Yielded]:
        """Yield the usage of a model's answer, once it has been read."""
        if self._reading and self.usage:
            self._reading = False
            self._turn += 1
            yield self.usage.popleft()

    def _emitted(self, call_id: str) -> Iterator[Yielded]:
        """Yield what a tool has emitted in an earlier run, and did not in this one, because it returned there."""
        if call_id not in self.tools.ran:
            for event in self._logged:
                if event["tool_call_id"] == call_id:
                    yield {"type": "custom", **event}


@dataclass
class _Steps(AbstractCapability[Any]):
    """Makes calls of tools steps. `ran` has the calls that ran in this run, and not in an earlier one."""

    turns: Turns
    ran: set[str] = field(default_factory=set)

    async def wrap_tool_execute(self, ctx: Any, *, call: Any, tool_def: Any, args: Any, handler: Any) -> Any:
        """Run a tool, or return what it returned in an earlier run."""

        async def run() -> Json:
            self.ran.add(call.tool_call_id)
            try:
                output = await handler(args)
            except (ModelRetry, ToolRetryError) as retry:
                return {"retry": str(retry)}
            except (ToolFailed, ToolFailedError) as failure:
                return {"failed": str(failure)}
            if isinstance(output, messages.ToolReturn):
                return {"return": _RETURN.dump_python(output, mode="json")}
            return {"output": _OUTPUT.dump_python(output, mode="json")}

        kept = await self.turns.tool(call.tool_name, call.tool_call_id, call.args_as_json_str(), run)
        if "retry" in kept:
            raise ModelRetry(kept["retry"])
        if "failed" in kept:
            raise ToolFailed(kept["failed"])
        return _RETURN.validate_python(kept["return"]) if "return" in kept else _OUTPUT.validate_python(kept["output"])


class _Model(WrapperModel):
    """A model whose calls are steps."""

    def __init__(self, model: Any, answer: _Answer) -> None:
        super().__init__(model)
        self._answer = answer

    @contextlib.asynccontextmanager
    async def request_stream(
        self,
        messages: list[messages.ModelMessage],
        model_settings: Any,
        model_request_parameters: ModelRequestParameters,
        run_context: Any = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Ask the model, or repeat what an earlier run kept of its answer."""
        turns, usage = self._answer.turns, self._answer.usage
        self._answer.run_by.update(_who_runs(model_request_parameters))

        def ask() -> contextlib.AbstractAsyncContextManager[StreamedResponse]:
            given = turns.merged(messages, lambda said: _said(said, messages))
            return self.wrapped.request_stream(given, model_settings, model_request_parameters, run_context)

        async with turns.model(len(messages), ask, lambda live: _dump(live.get())) as call:
            live: StreamedResponse
            if call.live is None:
                (response,) = _RESPONSE.validate_python([call.kept])
                assert isinstance(response, ModelResponse)
                live = CompletedStreamedResponse(
                    response, model_request_parameters=model_request_parameters, replay_events=True
                )
            else:
                live = call.live
            yield live
            usage.append(_usage(live.get().usage))


def _who_runs(parameters: ModelRequestParameters) -> Iterator[tuple[str, str]]:
    for tool in parameters.function_tools:
        yield tool.name, "client" if tool.kind == "external" else "generator"
    for tool in parameters.output_tools:
        yield tool.name, "output"


def _dump(response: Any) -> Any:
    return _RESPONSE.dump_python([response], mode="json")[0]


def _usage(usage: Any) -> Json:
    return usage_event(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        total_tokens=usage.total_tokens,
        cached_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
    )


def _custom(name: str, data: Any) -> Json:
    return {"type": "custom", "name": name, "data": data}


def _is_cut(history: Sequence[messages.ModelMessage]) -> bool:
    """Whether the last answer of the model reached the limit of its length."""
    return bool(history) and getattr(history[-1], "finish_reason", None) == "length"


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Translate the errors of the framework that are neither a provider's nor a mistake of its user."""
    try:
        yield
    except AgentRunError as error:
        if known := as_generation_error(error, begun=True, http=False):
            raise known from error
        if isinstance(error, UsageLimitExceeded):
            raise GenerationError("usage_limit", "The agent used more than it may.") from error
        if isinstance(error, ContentFilterError):
            raise GenerationError(
                "provider_content_filter", "The model provider's content filter blocked the answer."
            ) from error
        if isinstance(error, UnexpectedModelBehavior):
            raise GenerationError("provider_error", "The model sent something that the agent cannot use.") from error
        raise


def _split(history: list[messages.ModelMessage]) -> tuple[Any, list[messages.ModelMessage]]:
    """Return the last message of the user, as the prompt of a run, and the messages before it."""
    last = history[-1] if history else None
    if isinstance(last, messages.ModelRequest) and len(last.parts) == 1:
        (part,) = last.parts
        if isinstance(part, messages.UserPromptPart):
            return part.content, history[:-1]
    return None, history


def _said(said: list[Json], before: list[messages.ModelMessage]) -> list[messages.ModelMessage]:
    """Return what people said in the meantime, as a request with the same instructions as the one before it."""
    instructions = before[-1].instructions if isinstance(before[-1], messages.ModelRequest) else None
    parts = [part for message in history_of(said) for part in message.parts]
    return [messages.ModelRequest(parts, instructions=instructions)]  # type: ignore[arg-type]
