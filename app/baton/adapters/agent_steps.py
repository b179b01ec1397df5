"""What the adapters of agents share that have no checkpoints: an agent repeats itself from its steps.

The calls of models and tools, and the inputs that people send, are steps. A later run of the generator runs the agent
from its beginning. Every call that has ended returns what it returned before, so the agent repeats itself until it
reaches what had not ended, and continues there. No model is asked twice for an answer that is complete, and no tool
runs twice. If viewers have seen a part of a model's answer that had not ended, the model is asked again. Unless it says
the same, viewers get a `reset`, the repetition, and the new answer.

A worker that leaves waits for the steps that run. So a deploy does not cut a model's answer, if it ends in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

import orjson

from ..generators import GenerationRequest, Generator, SoFar, Yielded, continues
from ..generators.inbox import Inbox
from ..generators.provider_answer import CallNumbers

Live = TypeVar("Live")
Item = TypeVar("Item")
Agent = TypeVar("Agent")
Json = dict[str, Any]
Options = Mapping[str, Any]


class Answer(Protocol):
    """One answer of an agent."""

    def events(self) -> AsyncGenerator[Yielded, None]:
        """Yield the events of the answer."""


def generator_of(
    agent: Agent | Callable[[GenerationRequest], Agent],
    kind: type[Agent],
    answer: Callable[[GenerationRequest, Agent, dict[str, Any]], Answer],
    *,
    options: Callable[[GenerationRequest], Options] | None,
    fixed: Options,
) -> Generator:
    """Return a generator that yields the events of `answer`, for an agent or what a function returns for a request.

    `kind` is the class of the framework's agents. `fixed`, and what `options` returns for the request, are arguments of
    the framework's run.
    """

    @continues
    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        chosen = agent if isinstance(agent, kind) else cast("Callable[[GenerationRequest], Agent]", agent)(request)
        given = {**fixed, **(options(request) if options else {})}
        async with contextlib.aclosing(answer(request, chosen, given).events()) as events:
            async for event in events:
                yield event

    return generate


class Calls(CallNumbers):
    """Numbers the tool calls of a whole answer: 0, 1, 2 … in the order in which they appear."""

    def start(self, key: Hashable, call_id: str, name: str, arguments: str = "", *, run_by: str = "generator") -> Json:
        """Return the first event of the call that the framework names by `key` from now on."""
        return {**cast(Json, self.begin(key, call_id, name, arguments)), "run_by": run_by}


class Results:
    """The results of tools, in the order of the log, as far as it has them, and then as they come.

    Tools that run at the same time return in any order. An answer that repeats itself must repeat that order, too.
    """

    def __init__(self, so_far: SoFar) -> None:
        self._logged = deque(result["id"] for result in so_far.tool_results)
        self._held: dict[str, Json] = {}

    def add(self, call_id: str, result: Any) -> Iterator[Json]:
        """Yield what may be shown now, with this result."""
        self._held[call_id] = {"type": "tool_result", "id": call_id, "result": result}
        while self._logged and self._logged[0] in self._held:
            yield self._held.pop(self._logged.popleft())
        if not self._logged:
            yield from self.rest()

    def rest(self) -> Iterator[Json]:
        """Yield what was held back for results that have not come. Call it before the next call of a model."""
        yield from self._held.values()
        self._held.clear()


@dataclass(frozen=True, slots=True)
class ModelCall(Generic[Live]):
    """One call of a model: `live`, or None, and `kept`, what an earlier run kept of it."""

    live: Live | None
    kept: Any = None


class Turns:
    """The steps of one run of an agent, numbered in the order in which the agent makes them.

    What must be the same in each run: the order of the calls of models, and of the pauses. Tools may run at the same
    time, since the ids of their calls tell them apart.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.number = 0  # of calls of models that have ended
        self._last = ""  # the digest of the last answer of a model
        self._inputs = 0  # that were taken from the inbox
        self._decided: dict[str, Json] = {}  # approvals by the id of the call
        self._unread: list[Json] = []  # chat messages that no model has got
        self._said: list[tuple[int, list[Json]]] = []  # what models got between the framework's own messages

    @property
    def start(self) -> Yielded:
        """The first event: the answer repeats itself from its beginning."""
        return {"type": "continue", "after": self.request.state_seq}

    @contextlib.asynccontextmanager
    async def model(
        self,
        size: int,
        ask: Callable[[], AbstractAsyncContextManager[Live]],
        keep: Callable[[Live], Any],
    ) -> AsyncIterator[ModelCall[Live]]:
        """Ask a model, or find what an earlier run kept of this call.

        `size` is the number of messages that the framework sends. `ask` begins the call; call `merged` there, for what
        people have said in the meantime. `keep` returns what is kept of the call, as JSON, once the caller leaves this
        context. If it leaves with an exception, or is cancelled, the call is ended, and nothing is kept.
        """
        opened: asyncio.Future[Live] = asyncio.get_running_loop().create_future()
        read = asyncio.Event()

        async def run(_number: int, _after: str) -> Json:
            taken = await self._take()
            self._hear(taken, size)
            async with ask() as live:
                opened.set_result(live)
                await read.wait()
                return {**taken, "answer": keep(live)}

        # The digest keeps this call apart from one that followed another answer.
        step = asyncio.ensure_future(self.request.step("model", run, self.number, self._last))
        try:
            await asyncio.wait({step, opened}, return_when=asyncio.FIRST_COMPLETED)
            if opened.done():
                yield ModelCall(opened.result())
                read.set()
                await step
            else:
                kept = await step
                self._hear(kept, size)
                yield ModelCall(None, kept["answer"])
            self.number += 1
            self._last = hashlib.sha256(orjson.dumps(step.result()["answer"])).hexdigest()
        finally:
            step.cancel()
            await asyncio.wait({step})

    async def tool(self, name: str, call_id: str, arguments: Any, call: Callable[[], Awaitable[Any]]) -> Any:
        """Call a tool, or return what it returned in an earlier run. It must return JSON."""

        async def run(_call_id: str, _arguments: Any) -> Any:
            return await call()

        return await self.request.step(name, run, call_id, arguments)

    def merged(self, messages: Sequence[Item], convert: Callable[[list[Json]], Sequence[Item]]) -> list[Item]:
        """Return what a model gets: the framework's messages, with what people said in the meantime in its place."""
        merged = list(messages)
        for place, said in reversed(self._said):
            merged[place:place] = convert(said)
        return merged

    async def decisions(self, calls: Sequence[str]) -> Mapping[str, Json] | None:
        """Return the users' decisions about calls of tools, `{"approved": bool, "reason": str | None}`, by their ids.

        None means that some are missing: yield `approval`, and return.
        """
        while any(call not in self._decided for call in calls):
            if await self._pause():
                return None if any(call not in self._decided for call in calls) else self._decided
        return self._decided

    @staticmethod
    def approval(calls: Sequence[str]) -> Iterator[Yielded]:
        """Yield what asks users to allow calls of tools."""
        for call in calls:
            yield {"type": "tool_approval", "id": call}

    @staticmethod
    def wait(calls: Sequence[str]) -> Yielded:
        """Return what ends a run that waits for decisions."""
        return {"type": "wait", "for": {"type": "approval", "calls": list(calls)}}

    async def more(self) -> list[Json]:
        """Return the chat messages that came and that no model has got. Call it when the agent has ended."""
        await self._pause()
        unread, self._unread = self._unread, []
        return unread

    async def _pause(self) -> bool:
        """Take the inputs that are there, as a step; return whether this run took them, and not an earlier one."""
        fresh = False

        async def take() -> Json:
            nonlocal fresh
            fresh = True
            return await self._take()

        self._sort(await self.request.step("inputs", take))
        return fresh

    async def _take(self) -> Json:
        """Take the inputs that are there. The inbox begins after the ones that steps have kept."""
        inbox = cast(Inbox, self.request.inbox)
        inbox.begin(self._inputs)
        inputs = []
        while (data := await self.request.receive(0)) is not None:
            inputs.append(data)
        return {"inputs": inputs, "before": self._inputs}

    def _hear(self, taken: Json, size: int) -> None:
        """Put what people said into the call of a model that begins now."""
        self._sort(taken)
        if self._unread:
            self._said.append((size, self._unread))
            self._unread = []

    def _sort(self, taken: Json) -> None:
        inputs = taken["inputs"][max(self._inputs - taken["before"], 0) :]
        self._inputs += len(inputs)
        for data in inputs:
            if isinstance(data, str):
                self._unread.append({"role": "user", "content": data})
            elif isinstance(data, Mapping) and data.get("type") == "message":
                self._unread.append(data["message"])
            elif isinstance(data, Mapping) and data.get("type") == "approval":
                self._decided[str(data.get("call_id"))] = dict(data)
