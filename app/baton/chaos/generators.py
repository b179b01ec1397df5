"""The generators that chaos' workers run. They differ in what they do after a worker was lost.

- `continuing` goes on after the last event that is in the log, with the token of its state.
- `replaying` repeats itself from its last state, or from the start, and cuts its text differently each time.
- `restarting` cannot continue.
- `asking` continues as `continuing` does. It also receives inputs, and waits for approvals and deadlines (`Dialogue`).

All of them write the same kind of answer: deltas, and after every so many of them a step, whose tool records its calls
outside Postgres (`tool_calls`). A state is the token and the number of deltas that it covers.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from random import Random
from typing import Any, Final, Self

from ..generators import GenerationRequest, continues
from ..generators.protocol import Yielded
from .deltas import Delta, DeltaReader, write
from .tool_calls import Tool

KINDS: Final = ("continuing", "replaying", "restarting", "asking")

LONGEST_CALL_SECONDS: Final = 0.2
# How long a wait without an answer takes: every third one.
PAUSE_SECONDS: Final = 1.0

Events = AsyncGenerator[Yielded, None]


def wait_name(number: int) -> str:
    """Return the name of an answer's `number`th wait: for an approval, or for a deadline."""
    return f"call-{number}" if number % 3 else f"pause-{number}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a generator yields: the input of its stream."""

    events: int  # how many deltas
    rate: float  # deltas a second
    burst: int  # how many at once
    large_every: int = 0  # every Nth delta has padding; 0: none
    padding: int = 0
    step_every: int = 0  # a step follows every Nth delta; 0: none
    save_every: int = 0  # a state is saved after every Nth delta; 0: none
    messages: int = 0  # how many inputs come while it is written
    ask_every: int = 0  # it waits after every Nth delta, for an approval or a deadline; 0: never

    @classmethod
    def of(cls, request: GenerationRequest) -> Self:
        """Return the answer that a stream asks for."""
        return cls(**request.input)

    def as_input(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)

    @property
    def waits(self) -> Sequence[str]:
        """The names of its waits, in their order: `call-1` for an approval, `pause-3` for a deadline."""
        count = self.events // self.ask_every if self.ask_every else 0
        return [wait_name(number) for number in range(1, count + 1)]

    @property
    def inputs(self) -> int:
        """How many inputs it receives: messages, and one for each approval."""
        return self.messages + sum(name.startswith("call") for name in self.waits)

    def text(self, token: str, number: int) -> str:
        """Return a delta."""
        large = self.large_every and number % self.large_every == 0
        return write(Delta(token, number), self.padding if large else 0)

    def characters(self, token: str, deltas: int) -> int:
        """Return how much text the first deltas are."""
        return sum(len(self.text(token, number)) for number in range(1, deltas + 1))


@dataclass(frozen=True, slots=True)
class Given:
    """How much of an answer a run does not yield, in characters, tool calls and results.

    It does not pause before it has yielded what viewers have: `seen` characters.
    """

    characters: int = 0
    calls: int = 0
    results: int = 0
    seen: int = 0


NOTHING: Final = Given()


class Dialogue:
    """What follows the deltas of a run: inputs and waits, which only `asking` has, and states.

    The log has each input once, by its number and its key. An input that is received again must be the one that the log
    has at that place: its state was not saved.
    """

    def __init__(self, request: GenerationRequest, answer: Answer, state: Mapping[str, Any]) -> None:
        self.waits = False  # it has yielded `wait`, so the run is over
        self._request = request
        self._answer = answer
        self._token = state["token"]
        self._received: int = state.get("inputs", 0)
        self._asked: int = state.get("asked", 0)  # how many waits have begun, or need none
        self._logged = [item["data"]["key"] for item in request.so_far.custom]

    def state(self, number: int) -> dict[str, Any]:
        """Return the event that saves the state after this many deltas."""
        state = {"token": self._token, "number": number, "inputs": self._received, "asked": self._asked}
        return {"type": "state", "state": state}

    async def follow(self, number: int) -> Events:
        """Yield what follows a delta. After the last one, all inputs that are still to come."""
        last = number == self._answer.events
        while self._received < self._answer.inputs:
            data = await self._request.receive(timeout=None if last and not self._next_wait(number) else 0)
            if data is None:
                break
            # A state covers all that was received before it is yielded, so one input is received at a time.
            for item in self._receive(data, number):
                yield item
        if wait := self._next_wait(number):
            self._asked, self.waits = wait, True
            yield self._wait(wait, number)
        elif self._answer.save_every and number % self._answer.save_every == 0:
            yield self.state(number)

    def _next_wait(self, number: int) -> int:
        """Return the number of the wait after so many deltas: its approval has not come, or it was no pause yet."""
        wait, rest = divmod(number, self._answer.ask_every) if self._answer.ask_every else (0, 0)
        if not wait or rest:
            return 0
        name = wait_name(wait)
        over = name in self._logged if name.startswith("call") else self._asked >= wait
        return 0 if over else wait

    def _wait(self, wait: int, number: int) -> dict[str, Any]:
        name = wait_name(wait)
        reason = {"type": "approval", "calls": [name]}
        until = {} if name.startswith("call") else {"until": PAUSE_SECONDS}
        return {"type": "wait", "for": reason, **until, "state": self.state(number)["state"]}

    def _receive(self, data: Mapping[str, Any], number: int) -> Iterator[dict[str, Any]]:
        """Note an input, and save that.

        Raises:
            RuntimeError: it is another one than the log has at its place.
        """
        self._received += 1
        if self._received > len(self._logged):
            self._logged.append(data["key"])
            yield {"type": "custom", "name": "input", "data": {"n": self._received, "key": data["key"]}}
        elif self._logged[self._received - 1] != data["key"]:
            raise RuntimeError(f"Input {self._received} is {data['key']}, and the log has {self._logged}.")
        yield self.state(number)


@continues
async def asking(request: GenerationRequest) -> Events:
    """Continue as `continuing` does, receive inputs, and wait for approvals and deadlines."""
    async with contextlib.aclosing(continuing(request)) as events:
        async for item in events:
            yield item


@continues
async def continuing(request: GenerationRequest) -> Events:
    """Continue after the last event of the log. Without a state, begin.

    Raises:
        RuntimeError: the state is older than it may be.
    """
    answer, so_far, state = Answer.of(request), request.so_far, request.state
    given = NOTHING
    if state is None:
        state = {"token": secrets.token_hex(4), "number": 0}
        yield {"type": "state", "state": state}
    else:
        whole = len(DeltaReader().feed(so_far.text))
        # A delta may be in the log before its state, but not before the state of an earlier one.
        if state["number"] < (whole // answer.save_every - 1) * answer.save_every:
            raise RuntimeError(f"The state covers {state['number']} deltas, and the log has {whole}.")
        yield {"type": "continue", "after": so_far.seq}
        size = len(so_far.text)
        given = Given(size, len(so_far.tool_calls), len(so_far.tool_results), size)
    dialogue = Dialogue(request, answer, state)
    async with contextlib.aclosing(_yield(request, answer, state["token"], given, dialogue)) as events:
        async for item in events:
            yield item


@continues
async def replaying(request: GenerationRequest) -> Events:
    """Repeat the answer from the last state on."""
    answer, token = Answer.of(request), request.stream_id.hex[-8:]
    number = request.state["number"] if request.state else 0
    if request.run > 1:
        yield {"type": "continue", "after": request.state_seq}
    steps = number // answer.step_every if answer.step_every else 0
    given = Given(answer.characters(token, number), steps, steps, len(request.so_far.text))
    dialogue = Dialogue(request, answer, {"token": token})
    async with contextlib.aclosing(_yield(request, answer, token, given, dialogue)) as events:
        async for item in events:
            yield item


async def restarting(request: GenerationRequest) -> Events:
    """Write another answer in each run."""
    answer = Answer.of(request)
    token = secrets.token_hex(4)
    dialogue = Dialogue(request, answer, {"token": token})
    async with contextlib.aclosing(_yield(request, answer, token, NOTHING, dialogue)) as events:
        async for item in events:
            # It may not save.
            if isinstance(item, str) or item["type"] != "state":
                yield item


async def _yield(request: GenerationRequest, answer: Answer, token: str, given: Given, dialogue: Dialogue) -> Events:
    """Yield an answer at its rate, without what is given, up to a wait."""
    random = Random(f"{request.stream_id} {request.run}")
    loop = asyncio.get_running_loop()
    due, end = loop.time(), 0
    for number in range(1, answer.events + 1):
        text = answer.text(token, number)
        start, end = end, end + len(text)
        for piece in _pieces(text[max(0, given.characters - start) :], random):
            yield piece
        if answer.step_every and number % answer.step_every == 0:
            index = number // answer.step_every
            if index > given.calls:
                yield _call(index)
            if index > given.results:
                yield await _result(request, index, random)
        if end >= given.characters:
            async with contextlib.aclosing(dialogue.follow(number)) as items:
                async for item in items:
                    yield item
            if dialogue.waits:
                return
        if number % answer.burst == 0 and end > given.seen:
            # After a full outbox it continues at its rate, and does not catch up.
            due = max(due + answer.burst / answer.rate, loop.time() - 1)
            await asyncio.sleep(max(0.0, due - loop.time()))


def _pieces(text: str, random: Random) -> Iterator[str]:
    """Cut a text now and then."""
    while len(text) > 1 and random.random() < 0.2:
        at = random.randrange(1, len(text))
        yield text[:at]
        text = text[at:]
    if text:
        yield text


def _call(index: int) -> Mapping[str, Any]:
    """Return the event of a call of the tool."""
    return {
        "type": "tool_call",
        "index": index - 1,
        "id": f"step-{index}",
        "name": "count",
        "arguments_delta": f'{{"index":{index}}}',
        "run_by": "generator",
    }


async def _result(request: GenerationRequest, index: int, random: Random) -> Mapping[str, Any]:
    """Call the tool as a step, half of the time in a thread; return the event of its result."""
    tool = Tool.from_environment(str(request.stream_id), request.run)
    function = tool.call if index % 2 else tool.call_in_thread
    pause = random.uniform(0, LONGEST_CALL_SECONDS)
    result = await request.step("count", partial(function, pause=pause), index)
    tool.note_kept(index, result)
    return {"type": "tool_result", "id": f"step-{index}", "result": result}
