"""The dialect of OpenAI's Responses API: a stream as the events of a Response.

Text, reasoning and tool calls become output items, which begin, grow by deltas, and end with their whole content.
`sequence_number` counts the frames from 0. Calls may grow in parallel, so each stays open until its result or the end
of the stream. Text and reasoning end when anything else begins.

A call for the client is a `function_call`. A call that the generator ran is an `mcp_call` with its result, like a tool
that OpenAI's own server ran: clients run every `function_call`. Who runs a call is known when its result comes or the
stream ends, unless its first event says so. Until then it is held back.

Events without a counterpart (`custom`) are left out. A `reset` discards deltas that were already sent, so the stream
ends there with an `error` event. Retrieving the Response later returns the new answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final
from uuid import UUID

import orjson

from ..db.event_log import Batch
from ..db.streams import Stream
from . import sse
from .protocol import Encoded, Header, Over
from .responses_items import Fields
from .responses_writer import ResponseState, ResponseWriter

# The fields of the request that a Response repeats, with their defaults.
_REPEATED: Final[Mapping[str, Any]] = {
    "instructions": None,
    "max_output_tokens": None,
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": None,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
}


class Responses:
    """The dialect."""

    name = "openai.responses"
    headers: ClassVar[Sequence[Header]] = sse.HEADERS
    comment: ClassVar[bytes] = sse.COMMENT
    reconnects: ClassVar[bool] = False

    def begin(self, stream: Stream, given: Any, after: int = 0) -> Encoded[ResponseState]:
        """Return the frames that precede the first event; `given` is the stream's input."""
        writer = ResponseWriter(ResponseState(_unchanging(stream, given)))
        writer.emit("response.created", response=writer.response("queued"))
        writer.emit("response.queued", response=writer.response("queued"))
        return writer.encoded(after)

    def encode(self, batch: Batch, state: ResponseState, after: int) -> Encoded[ResponseState]:
        """Encode a batch."""
        writer = ResponseWriter(state)
        for line in batch.lines:
            writer.add(orjson.loads(line))
        return writer.encoded(after)

    def greeting(self, reconnect_milliseconds: int) -> bytes:
        """Return a comment, which makes proxies forward the response."""
        return self.comment

    def broken(self, state: ResponseState, code: str, message: str) -> tuple[bytes, Over]:
        """Return an error event."""
        writer = ResponseWriter(state)
        writer.fail(code, message)
        return writer.encoded(state.frames).body, "ended"


def response_of(stream: Stream, given: Any, lines: Iterable[str]) -> Fields:
    """Return the Response of the events so far, without those before a `reset`."""
    writer = ResponseWriter(ResponseState(_unchanging(stream, given)))
    status = "queued"
    for event in map(orjson.loads, lines):
        status = "in_progress"
        if event["type"] == "reset":
            writer = ResponseWriter(ResponseState(writer.state.response))
        else:
            writer.add(event)
    return writer.ended or writer.response(status)


def response_id(stream_id: UUID) -> str:
    """Return the id that a stream has as a Response."""
    return f"resp_{stream_id.hex}"


def _unchanging(stream: Stream, given: Any) -> Fields:
    """Return the fields of a Response that never change."""
    request = given if isinstance(given, Mapping) and "input" in given else {}
    chat = stream.metadata.get("chat")
    repeated = {name: request.get(name, default) for name, default in _REPEATED.items()}
    return {
        "id": response_id(stream.id),
        "object": "response",
        "created_at": int(stream.created_at.timestamp()),
        "model": request.get("model") or stream.generator,
        # Every Response continues without its client.
        "background": True,
        "conversation": {"id": chat} if isinstance(chat, str) else None,
        "error": None,
        "incomplete_details": None,
        "metadata": {name: _as_text(value) for name, value in stream.metadata.items()},
        **repeated,
    }


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


RESPONSES: Final = Responses()
