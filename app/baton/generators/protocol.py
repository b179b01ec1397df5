"""What a generator is: a generator function of one argument, the request. If it is not async, it runs in a thread."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from uuid import UUID

from ..errors import GenerationError
from .inbox import Inbox, InputReceiver
from .steps import StepCall, StepRunner, Steps, result_of

Yielded = str | Mapping[str, Any]
_Generator = TypeVar("_Generator")


def continues(generator: _Generator) -> _Generator:
    """Mark a generator as one that can continue an answer that another run has begun (a decorator).

    Only such a generator may yield `state` and `continue`. It is called again after its worker died or was stopped,
    with `request.so_far` and `request.state`, and then yields `{"type": "continue", "after": ...}` first. If it does
    not, the answer starts over.
    """
    generator.continues = True  # type: ignore[attr-defined]
    return generator


def can_continue(generator: object) -> bool:
    """Whether a generator can continue an answer that another run has begun."""
    return bool(getattr(generator, "continues", False))


def stopper(generator: object) -> Callable[[Any], Awaitable[None]] | None:
    """Return the `stop` of a generator, which ends at the provider what a state stands for; None if it has none.

    One that is not async runs in a thread.
    """
    found: Callable[[Any], Any] | None = getattr(generator, "stop", None)
    if found is None or inspect.iscoroutinefunction(found):
        return found

    async def stop(state: Any) -> None:
        await result_of(lambda: found(state), found)

    return stop


@dataclass(frozen=True, slots=True)
class Approval:
    """A tool call that the user allowed, after an earlier stream asked: the generator runs it now.

    `name` and `arguments`, a JSON value, come from the stream that asked, not from the page. `reason` is the user's
    comment, if any. The result belongs to the call `call_id`.
    """

    id: str
    call_id: str
    name: str
    arguments: Any
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class SoFar:
    """The answer as earlier runs left it, since the last `reset`.

    `seq` is the number of the last event in the log. `tool_calls` are dicts with `id`, `name` and `arguments` (a
    string, which may be incomplete). `tool_results` and `custom` are events without their type. `usage` is the sum of
    all runs, or None.
    """

    seq: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: Sequence[Mapping[str, Any]] = ()
    tool_results: Sequence[Mapping[str, Any]] = ()
    custom: Sequence[Mapping[str, Any]] = ()
    usage: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """The request that a generator answers.

    `input` is the JSON that the creator of the stream sent; `baton.messages(request.input)`
    converts it to chat messages, whatever form the client used. `metadata` holds the stream's labels. `attempt` counts
    from 1, and rises when another worker takes the stream over after a crash, but not after an orderly handover.
    An answer that continues forgets its attempts whenever it has grown. `run` counts all starts from 1, handovers
    included.
    `traceparent` is the trace of the stream, to send to the provider as the header of that name (W3C Trace Context).
    `approvals` are the tool calls that the user allowed with this request. `tenant` is whose stream it is. `steps` runs
    what `step` is given: without a worker, as in a unit test, it keeps results in memory.

    A generator that can continue (see `continues`) finds what earlier runs left in `so_far`, and the state that it last
    saved in `state`, which covers the events up to the number `state_seq`.
    """

    stream_id: UUID
    input: Any
    metadata: Mapping[str, Any]
    attempt: int = 1
    traceparent: str | None = None
    approvals: tuple[Approval, ...] = ()
    run: int = 1
    tenant: str = ""
    so_far: SoFar = field(default_factory=SoFar)
    state: Any = None
    state_seq: int = 0
    steps: StepRunner = field(default_factory=Steps, repr=False, compare=False)
    inbox: InputReceiver = field(default_factory=Inbox, repr=False, compare=False)

    def receive(self, timeout: float | None = None) -> Any:
        """Return the data of the next input that was sent to the stream: `await request.receive()`.

        A generator that is defined with `def` leaves out the `await`: there the call itself waits.

        Inputs come in their order, each once for each saved state: after a worker died or left, and after a wait, they
        begin again after those that the last saved state covers. A state covers what this has returned before it was
        yielded. While this waits, the stream does not count as silent, but it holds its slot: to wait for more than
        some seconds, yield `wait`.

        Return None if no input comes within `timeout` seconds. 0 asks for one that is there already.
        """
        return self.inbox.receive(timeout)

    def step(self, name: str, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Any:
        """Run a function, such as a tool, once for the stream: `await request.step("search", search, query)`.

        A generator that is defined with `def` leaves out the `await`: there the call itself waits.

        Return its result as JSON gives it back, so a tuple is a list. The result is kept before this returns. When the
        generator runs again, after a worker died or left, the same call returns the kept result and does not call the
        function. A `reset` drops no results. Calls are the same if their name, their arguments, and their number among
        the calls of one run with that name and those arguments are equal; their order does not matter.

        An `async` function runs on the event loop, any other in a thread. Steps may run at the same time
        (`asyncio.gather`). While one runs, the stream does not count as silent. An exception of the function is raised
        here and not kept: the next run calls the function again. If the worker dies between the function's return and
        the moment at which its result is kept, the function runs again, with the same `baton.idempotency_key()`.

        Raises:
            StepError: the arguments or the result are not JSON, the result is larger than `BATON_MAX_EVENT_BYTES`, or
                the name is not 1 to 200 printable characters.
        """
        return self.steps.call(StepCall(self.stream_id, name, function, arguments, named))


class Generator(Protocol):
    """An async generator function.

    It yields `str` for text, or a dict:

    - `{"type": "text", "delta": str}` and `{"type": "reasoning", "delta": str}`. With an empty delta, reasoning may
      have the `signature` of what came before it, or `redacted` content, as the model's provider gave them.
    - `{"type": "tool_call", "index": int, "id": str, "name": str, "arguments_delta": str}`: the first event of a call
      has its id and name; later ones of the same index may have only `arguments_delta`. The first may also say who runs
      the tool: `"run_by": "client"` or `"generator"`. Otherwise the generator runs the call if a result comes, and the
      client if the stream ends without one; OpenAI's clients get the call only then.
    - `{"type": "tool_result", "id": str, "result": ...}`: of a tool that the generator ran
    - `{"type": "tool_approval", "id": str}`: ask the user to allow the call with that id; then return. The answer comes
      with another request: in `request.approvals`, or in its messages as a result that refuses.
    - `{"type": "usage", "input_tokens": int, "output_tokens": int, "total_tokens": int, ...}`: what one call of a model
      used, once for each call. A stream's usage is their sum, field by field. If a provider sends running totals, yield
      only the last of a call, or the differences.
    - `{"type": "custom", "name": str, "data": ...}`
    - `{"type": "finish", "finish_reason": str}`: why the model stopped; goes into the terminal event, "stop" if absent

    A generator that can continue (see `continues`) may also yield:

    - `{"type": "state", "state": ...}`: save any JSON as of the events yielded so far. It is no event: it has no
      number, and viewers never get it. It is in the database as soon as these events are. A state that comes before the
      first event of a run is in the database before the generator is asked for more. One that comes between the two
      halves of a surrogate pair is not saved.
    - `{"type": "continue", "after": int}`: the first thing that it yields, to continue after the event of that number,
      from `request.state_seq` to `request.so_far.seq`. After the last event it continues with what is new. After an
      earlier one it repeats itself: what equals the log is dropped, and a difference starts the answer over.
    - `{"type": "wait", "for": ..., "until": ...}`: the last thing that it yields in this run. The stream waits without
      a worker until an input comes, or until `until`: a `datetime` with a time zone, or seconds from now. Then the
      generator is called again, and continues; after `until`, `request.receive(0)` returns None. `for` is any JSON, for
      viewers: what the stream waits for. With `"state": ...` that state is saved when the wait begins. A stream with an
      input that the generator has not received does not wait: the generator is called again. A stream without `until`
      ends after `BATON_MAX_WAIT_SECONDS`.

    Returning ends the stream as completed. Raising `baton.GenerationError` ends it as failed with that code and
    message. So does an exception of a model provider's SDK, with the code that the built-in generators use (see
    `baton.as_generation_error`), also if it was wrapped by `raise … from` or in a group. Any other exception
    ends it as failed with the code `generator_error`. Cancelling the stream cancels the generator
    where it waits (`asyncio.CancelledError`), so `finally` blocks and `async with` close its resources.

    A function that is defined with `def` yields the same, and runs in a thread of its own for each stream. It is closed
    at its next `yield`, or in the step that it waits for (`GeneratorExit`).

    A generator may be an object with a second method, `async def stop(self, state)`: if a stream ends in any way but as
    completed, a worker calls it with the last state, at least once, to end what still runs elsewhere. It is not called
    when another worker continues the stream. It may be defined with `def`, and then runs in a thread.
    """

    def __call__(self, request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]: ...


def no_approvals(name: str) -> str:
    """Return the error message for approvals to a generator that runs no tools."""
    return (
        f"The generator {name!r} runs no tools, so it cannot run a call that the user allowed. Use your own generator."
    )


def refuse_approvals(name: str, request: GenerationRequest) -> None:
    """Refuse a request with approvals, for a generator that runs no tools.

    Raises:
        GenerationError: there are some.
    """
    if request.approvals:
        raise GenerationError("invalid_input", no_approvals(name))
