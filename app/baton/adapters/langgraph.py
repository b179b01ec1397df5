"""Runs LangGraph's graphs, LangChain's agents, and other Runnables as a generator: `generate = generator(graph)`.

A graph continues from its last checkpoint when its worker is lost, and after a wait. The checkpoints of a graph without
a durable checkpointer are in Baton's saved state. What a lost worker has shown of an unfinished step cannot be
continued, since a model does not say the same again: viewers get a `reset`, then what the finished steps have shown,
and then the step again. An `interrupt()` waits for people without a worker.

`Middleware` lets an agent of `langchain.agents.create_agent` take messages between its steps, and run its tools once.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final, Self, cast

from ..errors import GenerationError
from ..generators import GenerationRequest, Yielded, continues
from ..generators.conversation import messages as chat_messages
from .extras import extra
from .langgraph_pauses import Pause, decision_of, pause_of
from .langgraph_shown import Shown

with extra("langgraph", "langgraph"), extra("langgraph", "langchain"), extra("langgraph", "langchain_core"):
    from langchain.agents.middleware import AgentMiddleware
    from langchain_core.messages import BaseMessage
    from langchain_core.runnables import Runnable, RunnableConfig
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.errors import GraphRecursionError
    from langgraph.graph import END, START, MessagesState, StateGraph
    from langgraph.pregel import Pregel
    from langgraph.types import Command, StateSnapshot

    from . import langgraph_checkpoints as checkpoints
    from .langgraph_messages import MessageEvents, as_json, as_langchain

logger = logging.getLogger(__name__)

_MODES: Final[list[Any]] = ["messages", "updates", "custom", "checkpoints"]
# Attributes of a run that its state keeps as they are.
_SAVED: Final = ("checkpoint_id", "asked", "approvals", "answers", "values", "breakpoint", "received", "said")
# The inputs of a graph that has ended, or must wait.
_OVER: Final = object()
_WAITS: Final = object()


def generator(
    source: Any,
    *,
    input: Callable[[GenerationRequest], Any] | None = None,  # noqa: A002
    config: RunnableConfig | None = None,
    max_state_bytes: int = 1 << 20,
    **options: Any,
) -> Callable[[GenerationRequest], AsyncGenerator[Yielded, None]]:
    """Return a generator that runs a compiled graph, an agent, a chat model, or another Runnable over messages.

    `source` may also be a function, async or not, that takes the request and returns one of these. `input` makes the
    graph's input of a request; by default it is `{"messages": …}`, the conversation. `config` is added to the graph's;
    the thread is the stream, unless `config` names another one. `max_state_bytes` is your `BATON_MAX_STATE_BYTES`. The
    other options, such as `context`, go to `astream`.
    """

    @continues
    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        if request.approvals:
            raise GenerationError("invalid_input", "Send the approval as an input of the stream that asks for it.")
        run = _Run(await _graph(source, request), request, config or {}, options, max_state_bytes)
        try:
            async with contextlib.aclosing(run.events(input or _conversation)) as events:
                async for event in events:
                    yield event
        except GraphRecursionError as error:
            raise GenerationError("max_turns", "The agent took more steps than it may, and was ended.") from error

    return generate


class Middleware(AgentMiddleware[Any, Any, Any]):
    """Lets an agent take the stream's inputs between its steps, and run each tool call once, as a step of Baton.

    Without a stream it does nothing. Put it after middleware that asks for approvals.
    """

    async def abefore_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """Add the messages that people have sent since the last call of the model."""
        run = _running.get(None)
        if run is None:
            return None
        await run.receive()
        new = run.undelivered(state["messages"])
        return {"messages": new} if new else None

    async def awrap_tool_call(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        """Run a tool, or return what the same call returned in an earlier run."""
        run = _running.get(None)
        if run is None:
            return await handler(request)
        call = request.tool_call

        async def tool(*_call: Any) -> str:
            return checkpoints.packed(await handler(request))

        # Models make up names that no step may have.
        return checkpoints.unpacked(await run.request.step("tool", tool, call["name"], call["id"], call["args"]))


class _Busy:
    """Has a worker that leaves wait for the graph's step, up to its limit: Baton sees a step that lasts as long.

    It is cancelled each time, so nothing is kept of it.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self._request = request

    async def __aenter__(self) -> Self:
        self._begin()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self._end()

    async def renew(self) -> None:
        """Let a worker leave now, between two steps of the graph."""
        await self._end()
        self._begin()

    def _begin(self) -> None:
        self._step = asyncio.ensure_future(self._request.step("graph step", asyncio.Event().wait))

    async def _end(self) -> None:
        self._step.cancel()
        await asyncio.wait({self._step})


class _Run:
    """One run of a graph for one request, on one event loop.

    The state keeps every input that it covers until the graph has it, so that each counts once.
    """

    def __init__(
        self,
        graph: Pregel[Any, Any, Any, Any],
        request: GenerationRequest,
        config: RunnableConfig,
        options: Mapping[str, Any],
        max_state_bytes: int,
    ) -> None:
        saver = None if checkpoints.is_durable(graph) else InMemorySaver(serde=checkpoints.SERIALIZER)
        self.request = request
        self._saver = saver
        self._graph = graph if saver is None else graph.copy({"checkpointer": saver})
        self._thread_id = str(config.get("configurable", {}).get("thread_id", request.stream_id))
        place = {**config.get("configurable", {}), "thread_id": self._thread_id}
        self._config: RunnableConfig = {**config, "configurable": place}
        self._options = options
        self._max_state_bytes = max_state_bytes
        self._messages = MessageEvents()
        self._shown = Shown()
        self._checkpoint_id: str | None = None  # that the last state belongs to
        self._asked: list[str] = []  # the tool calls that people were asked about
        self._approvals: dict[str, Any] = {}  # by the id of the tool call
        self._answers: dict[str, Any] = {}  # by the id of the interrupt
        self._values: list[Any] = []  # inputs that answer no interrupt yet
        self._breakpoint: str | None = None  # the checkpoint at which the graph waits without an interrupt
        self._received: list[BaseMessage] = []  # that the graph does not have
        self._said = 0  # how many have been received
        self._head: str | None = None  # the graph's newest checkpoint
        self._pauses: list[Pause] = []  # at that checkpoint

    async def events(self, make_input: Callable[[GenerationRequest], Any]) -> AsyncGenerator[Yielded, None]:
        """Yield the events of the run, until the graph has ended or waits."""
        _running.set(self)
        if self.request.state is None:
            given = make_input(self.request)
            given = await given if inspect.isawaitable(given) else given
        else:
            await self._restore(self.request.state)
            for event in self._begin():
                yield event
            snapshot = await self._graph.aget_state(self._config)
            # A durable checkpointer may have more than the state.
            for event in self._unseen(snapshot.values):
                yield self._shown.add(event)
            given = await self._following(snapshot, begun=True)
        while given is not _OVER and given is not _WAITS:
            async with contextlib.aclosing(self._steps(given)) as events:
                async for event in events:
                    yield self._shown.add(event)
            given = await self._following(await self._graph.aget_state(self._config), begun=False)
        if given is _WAITS:
            for event in await self._wait():
                yield event
        elif self._messages.finish_reason:
            yield {"type": "finish", "finish_reason": self._messages.finish_reason}

    async def receive(self, *, strings_are_messages: bool = True) -> None:
        """Take the inputs that are there."""
        while (data := await self.request.receive(0)) is not None:
            kind = data.get("type") if isinstance(data, dict) else None
            if kind == "approval":
                self._approvals[str(data.get("call_id"))] = data
            elif kind == "message" or (isinstance(data, str) and strings_are_messages):
                message = data.get("message") if kind == "message" else {"role": "user", "content": data}
                self._said += 1
                self._received += as_langchain(chat_messages([message]), f"{self.request.stream_id}-said-{self._said}")
            else:
                self._values.append(data)

    def undelivered(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """Return the messages that people have sent, and that are not among those of the graph."""
        known = {message.id for message in messages}
        return [message for message in self._received if message.id not in known]

    def _begin(self) -> Iterator[Yielded]:
        """Continue after the log, if it has nothing but what the state covers; else show that again, after a reset."""
        if self._shown.is_all_of(self.request.so_far):
            yield {"type": "continue", "after": self.request.so_far.seq}
        else:
            yield from self._shown.events

    async def _steps(self, given: Any) -> AsyncGenerator[Yielded, None]:
        """Run the graph until it ends or is interrupted. Its checkpoint is saved after each step."""
        parts = cast(Any, self._graph).astream(
            given, self._config, stream_mode=_MODES, subgraphs=True, durability="sync", **self._options
        )
        async with contextlib.aclosing(parts), _Busy(self.request) as busy:
            async for namespace, mode, part in parts:
                for event in self._part(mode, part):
                    yield event
                if mode == "checkpoints" and not namespace:
                    if state := await self._step_state(part):
                        yield state
                    await busy.renew()

    def _part(self, mode: str, part: Any) -> Iterator[Yielded]:
        match mode:
            case "messages":
                yield from self._messages.of(part[0])
            case "custom":
                yield _custom(part)
            case "updates":
                yield from self._messages.usage()
            case "checkpoints" if part["metadata"].get("source") == "input":
                self._messages.skip(_messages(part["values"]))
            case "checkpoints":
                yield from self._unseen(part["values"])

    def _unseen(self, values: Any) -> Iterator[Yielded]:
        """Show the messages of a graph's values that were not shown."""
        for message in _messages(values):
            yield from self._messages.of(message)

    async def _following(self, snapshot: StateSnapshot, *, begun: bool) -> Any:
        """Return the graph's next input. `begun`: an earlier run may have left steps that can run now."""
        self._head = snapshot.config["configurable"].get("checkpoint_id")
        self._pauses = self._pauses_of(snapshot, begun=begun)
        asks = [pause for pause in self._pauses if not pause.calls]
        await self.receive(strings_are_messages=not asks)
        for pause in asks:
            if pause.id not in self._answers and self._values:
                self._answers[pause.id] = self._values.pop(0)
        answers = {pause.id: answer for pause in self._pauses if (answer := self._answer(pause)) is not None}
        if len(answers) < len(self._pauses):
            return _WAITS
        if snapshot.interrupts:
            return Command(resume=answers)
        if snapshot.next:
            return None
        new = self.undelivered(_messages(snapshot.values)) if "messages" in self._graph.channels else []
        return {"messages": new} if new else _OVER

    def _pauses_of(self, snapshot: StateSnapshot, *, begun: bool) -> list[Pause]:
        """Return what the graph waits for: answers to interrupts, or one of its breakpoints."""
        if snapshot.interrupts:
            return [
                pause_of(interrupt.id, interrupt.value, self._shown.open_calls) for interrupt in snapshot.interrupts
            ]
        if snapshot.next and not (begun and self._breakpoint != self._head):
            self._breakpoint = self._head
            return [Pause(str(self._head), {"next": list(snapshot.next)})]
        return []

    def _answer(self, pause: Pause) -> Any:
        """Return what people have said to a pause; None if something is missing."""
        if not pause.calls:
            return self._answers.get(pause.id)
        if any(call not in self._approvals for call in pause.calls):
            return None
        decisions = [decision_of(self._approvals[call]) for call in pause.calls]
        return {"decisions": decisions} if pause.batched else decisions[0]

    async def _wait(self) -> list[Yielded]:
        """Return what ends a run that waits for people."""
        open_pauses = [pause for pause in self._pauses if self._answer(pause) is None]
        calls = [call for pause in open_pauses for call in pause.calls if call not in self._approvals]
        new = [call for call in calls if call not in self._asked]
        self._asked += new
        reason: dict[str, Any] = {"type": "approval", "calls": calls}
        if not calls:
            reason = {"type": "interrupt", "id": open_pauses[0].id, "value": as_json(open_pauses[0].value)}
        records = [] if self._saver is None else await checkpoints.unfinished(self._saver, self._config)
        self._checkpoint_id = self._head
        wait = {"type": "wait", "for": reason, "state": self._state(records)}
        return [*({"type": "tool_approval", "id": call} for call in new), wait]

    async def _step_state(self, part: Mapping[str, Any]) -> Yielded | None:
        """Return the state after a step; None if there is nothing to save."""
        known = {message.id for message in _messages(part["values"])}
        self._received = [message for message in self._received if message.id not in known]
        place = part["config"]["configurable"]
        if place["checkpoint_id"] == self._checkpoint_id or part["metadata"].get("source") == "input":
            return None
        records: list[Any] = []
        if self._saver is not None:
            if not self._shown.events:
                return None  # a later run may as well begin again
            records = await checkpoints.newest(self._saver, {"configurable": place})
        state = self._state(records)
        if len(state["packed"]) + 100 > self._max_state_bytes:
            logger.warning("A graph's state is larger than `max_state_bytes`, so a later run continues further back.")
            return None
        self._checkpoint_id = place["checkpoint_id"]
        return {"type": "state", "state": state}

    def _state(self, records: list[Any]) -> dict[str, Any]:
        """Return what the next run needs, as JSON."""
        return {
            "packed": checkpoints.packed(
                {
                    "records": records,
                    "seen": sorted(self._messages.seen),
                    "calls": self._messages.calls.save(),
                    "shown": self._shown.events,
                    **{name: getattr(self, f"_{name}") for name in _SAVED},
                }
            )
        }

    async def _restore(self, state: Mapping[str, Any]) -> None:
        saved = checkpoints.unpacked(state["packed"])
        for name in _SAVED:
            setattr(self, f"_{name}", saved[name])
        self._shown = Shown(saved["shown"])
        self._messages.seen = set(saved["seen"])
        self._messages.calls.restore(saved["calls"])
        if self._saver is not None:
            await checkpoints.restore(self._saver, self._thread_id, saved["records"])


# Whose middleware runs.
_running: ContextVar[_Run] = ContextVar("baton_langgraph_run")


async def _graph(source: Any, request: GenerationRequest) -> Pregel[Any, Any, Any, Any]:
    """Return the graph for a request."""
    if not isinstance(source, Runnable):
        source = source(request)
        source = await source if inspect.isawaitable(source) else source
    return source if isinstance(source, Pregel) else _around(source)


def _around(runnable: Runnable[Any, Any]) -> Pregel[Any, Any, Any, Any]:
    """Return a graph whose only step is a Runnable over messages. What the models in it say is shown as it comes."""

    async def run(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        result = await runnable.ainvoke(state["messages"], config)
        return {"messages": [result] if isinstance(result, BaseMessage) else []}

    return StateGraph(MessagesState).add_node("run", run).add_edge(START, "run").add_edge("run", END).compile()


def _conversation(request: GenerationRequest) -> dict[str, Any]:
    return {"messages": as_langchain(chat_messages(request.input), str(request.stream_id))}


def _messages(values: Any) -> list[BaseMessage]:
    """Return the messages among a graph's values."""
    found = values.get("messages") if isinstance(values, Mapping) else getattr(values, "messages", None)
    return [item for item in found if isinstance(item, BaseMessage)] if isinstance(found, list) else []


def _custom(data: Any) -> Yielded:
    """Return what a node has written as an event: `{"name": …, "data": …}`, or any other data."""
    if isinstance(data, Mapping) and data.keys() == {"name", "data"} and isinstance(data["name"], str):
        return {"type": "custom", "name": data["name"], "data": as_json(data["data"])}
    return {"type": "custom", "name": "langgraph", "data": as_json(data)}
