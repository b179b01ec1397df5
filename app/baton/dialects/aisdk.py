"""The dialect of the Vercel AI SDK: its UI message stream protocol, which `useChat` and its transports read.

Frames are `data: <chunk as JSON>`, with `data: [DONE]` after the last. A chunk's number is its place in the stream,
and a client's `startIndex` is how many of them it has. Every stream that is sent to its end has exactly one `finish`,
as its last chunk, after an `error` or an `abort` too: `WorkflowChatTransport` comes back until it has seen one.

A tool call stays open, so that calls may interleave, until its result comes or the answer is complete; then its whole
input is sent. A call with a result is one that the generator ran, which `providerExecuted` says: without it the page
would run the tool again, or send the message back for a next step. A call without a result is for the page. What the
model says after a result is a new step of the answer. No step begins while a call is open, since the SDK would show a
call twice that continues in another step than it began in. Only a stopped answer ends with an empty step.

A stream may continue a message that the page has (`aisdk_message`). What is sent then differs between a client that has
the message, `AI_SDK`, and one that replays it, `REPLAY`; so a chunk's number belongs to one of the two.

The `finish` of an answer that has ended puts its status into the message's metadata. A page that has saved a message
without one has saved a part of an answer, and asks for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final
from uuid import UUID

import orjson

from ..db.event_log import Batch
from . import sse
from .aisdk_chunks import AiSdkState, Chunks
from .aisdk_message import Earlier
from .dialect import Encoded, Header, Over

RESET: Final = "This answer was interrupted, and begins again. Send the message again."

# The replay of a chat without an answer. The AI SDK 7 that `WorkflowChatTransport` brings does not know "interrupted".
NO_ANSWER: Final = b'data: {"type":"finish","finishReason":"other"}\n\ndata: [DONE]\n\n'


class AiSdk:
    """The dialect."""

    headers: ClassVar[Sequence[Header]] = (*sse.HEADERS, (b"x-vercel-ai-ui-message-stream", b"v1"))
    comment: ClassVar[bytes] = b":\n\n"
    reconnects: ClassVar[bool] = False

    def __init__(self, name: str) -> None:
        self.name = name

    def encode(self, batch: Batch, state: AiSdkState, after: int) -> Encoded[AiSdkState]:
        """Encode the chunks of a batch that follow number `after`."""
        chunks = Chunks(state)
        over: Over | None = None
        for event in map(orjson.loads, batch.lines):
            if event["type"] == "reset" and chunks.state.begun:
                # For these clients that is the end: a replay comes to it again.
                chunks.fail("reset", RESET, "failed")
            else:
                chunks.add(event)
            if chunks.ended:
                over = "ended"
                break
        return chunks.encoded(after, over)

    def greeting(self, reconnect_milliseconds: int) -> bytes:
        """Nothing: the first chunk is there at once."""
        return b""

    def broken(self, state: AiSdkState, code: str, message: str) -> tuple[bytes, Over]:
        """An error, and a `finish` without a status: how the answer ended is not known here."""
        chunks = Chunks(state)
        chunks.fail(code, message)
        return chunks.encoded(0, "ended").body, "ended"


def begin(
    stream_id: UUID, after: int = 0, earlier: Earlier | None = None, *, replay: bool = False
) -> Encoded[AiSdkState]:
    """Return the chunks before a stream's first event, in the body those that follow number `after`.

    `earlier` is the message that the stream continues, and `replay` whether the client is to get that too.
    """
    chunks = Chunks(AiSdkState({}, {}))
    chunks.begin(stream_id, earlier, replay=replay)
    return chunks.encoded(after)


# Of a client that has the message which the stream continues, if it continues one, and of a client that has nothing.
AI_SDK: Final = AiSdk("aisdk")
REPLAY: Final = AiSdk("aisdk.replay")
