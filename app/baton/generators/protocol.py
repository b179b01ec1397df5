"""What a generator is: an async generator function of one argument, the request."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

Yielded = str | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What a generator is asked to answer.

    `input` is whatever JSON the creator of the stream sent;
    `baton.generators.conversation.messages(request.input)` makes chat messages of it, whatever form the client used.
    `metadata` holds the stream's labels. `attempt` counts from 1 and rises when another worker takes the stream over
    from one that died, not when it was handed over in order. `traceparent` is the trace that this belongs to, for the
    provider: the value of the header of that name (W3C Trace Context).
    """

    stream_id: UUID
    input: Any
    metadata: Mapping[str, Any]
    attempt: int = 1
    traceparent: str | None = None


class Generator(Protocol):
    """An async generator function.

    It yields `str` for text, or a dict:

    - `{"type": "text", "delta": str}` and `{"type": "reasoning", "delta": str}`
    - `{"type": "tool_call", "index": int, "id": str, "name": str, "arguments_delta": str}`: the first event of a call
      carries its id and name, later ones of the same index may carry `arguments_delta` only
    - `{"type": "tool_result", "id": str, "result": ...}`
    - `{"type": "usage", "input_tokens": int, "output_tokens": int, "total_tokens": int, ...}`: the last one counts
    - `{"type": "custom", "name": str, "data": ...}`
    - `{"type": "finish", "finish_reason": str}`: why the model stopped; goes into the terminal event, "stop" if absent

    Returning ends the stream as completed. Raising `baton.errors.GenerationError` ends it as failed with that code and
    message, any other exception as failed with the code `generator_error`. Cancelling the stream cancels the generator
    where it waits (`asyncio.CancelledError`), so `finally` blocks and `async with` close what it holds.
    """

    def __call__(self, request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]: ...
