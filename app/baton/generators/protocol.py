"""What a generator is: a generator function of one argument, the request. If it is not async, it runs in a thread."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from ..errors import GenerationError

Yielded = str | Mapping[str, Any]


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
class GenerationRequest:
    """The request that a generator answers.

    `input` is the JSON that the creator of the stream sent; `baton.messages(request.input)`
    converts it to chat messages, whatever form the client used. `metadata` holds the stream's labels. `attempt` counts
    from 1, and rises when another worker takes the stream over after a crash, but not after an orderly handover.
    `traceparent` is the trace of the stream, to send to the provider as the header of that name (W3C Trace Context).
    `approvals` are the tool calls that the user allowed with this request.
    """

    stream_id: UUID
    input: Any
    metadata: Mapping[str, Any]
    attempt: int = 1
    traceparent: str | None = None
    approvals: tuple[Approval, ...] = ()


class Generator(Protocol):
    """An async generator function.

    It yields `str` for text, or a dict:

    - `{"type": "text", "delta": str}` and `{"type": "reasoning", "delta": str}`
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

    Returning ends the stream as completed. Raising `baton.GenerationError` ends it as failed with that code and
    message. So does an exception of a model provider's SDK, with the code that the built-in generators use (see
    `baton.as_generation_error`), also if it was wrapped by `raise … from` or in a group. Any other exception
    ends it as failed with the code `generator_error`. Cancelling the stream cancels the generator
    where it waits (`asyncio.CancelledError`), so `finally` blocks and `async with` close its resources.

    A function that is defined with `def` yields the same, and runs in a thread of its own for each stream. It is closed
    at its next `yield` (`GeneratorExit`).
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
