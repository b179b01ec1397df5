"""The dialect of the Vercel AI SDK: its UI message stream protocol, which `useChat` and its transports read.

Frames are `data: <chunk as JSON>`, with `data: [DONE]` after the last. A chunk's number is its place in the stream, and
a client's `startIndex` is how many of them it has. Every stream has exactly one `finish`, as its last chunk, also after
an `error` or an `abort`: `WorkflowChatTransport` reconnects until it has seen one.

A tool call stays open until its result comes or the answer ends, so calls may interleave. Then its whole input is sent.
The generator ran a call that has a result, and `providerExecuted` says so: otherwise the page would run the tool again,
or send the message for a next step. The page runs a call without a result. Output of the model after a result is a new
step. No step begins while a call is open: the SDK would show a call that continues in a later step twice. Only a
stopped answer ends with an empty step.

A stream may continue a message that the page has (`aisdk_message`). A client that has the message (`AI_SDK`) does not
get the same chunks as a client that replays it (`REPLAY`). So a chunk's number is valid in only one of the two.

While a stream waits for people, its connections end with a `finish`, so that the page can answer: it is not a chunk of
the stream. The stream's next chunk is the metadata that takes the wait back, and has the number that the page counted
for this `finish`. So the numbers are the same for clients that were there during the wait, and for those that replay
the whole message later. A page that has the message up to a wait gets what follows after a `start` with the same id
(`continue_after_wait`).

The `finish` of an answer that has ended puts its status into the message's metadata. A page that has saved a message
without a status has saved a part of the answer, and asks for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final
from uuid import UUID

import orjson

from ..db.event_log import Batch
from . import sse
from .aisdk_chunks import AiSdkState, Chunks, frame
from .aisdk_message import Earlier
from .protocol import Encoded, Header, Over

RESET: Final = "This answer was interrupted and restarts. Send the message again."

# The replay of a chat without an answer. The AI SDK 7 that `WorkflowChatTransport` depends on does not know
# "interrupted".
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
        for seq, event in enumerate(map(orjson.loads, batch.lines), batch.first_seq):
            if event["type"] == "reset" and chunks.state.begun:
                # These clients stop here: a replay would reach the reset again.
                chunks.fail("reset", RESET, "failed")
            else:
                chunks.add(event, seq)
            if chunks.ended:
                over = "ended"
                break
        return chunks.encoded(after, over)

    def greeting(self, reconnect_milliseconds: int) -> bytes:
        """Return nothing: the first chunk is sent at once."""
        return b""

    def broken(self, state: AiSdkState, code: str, message: str) -> tuple[bytes, Over]:
        """Return an error, and a `finish` without a status: it is not known how the answer ended."""
        chunks = Chunks(state)
        chunks.fail(code, message)
        return chunks.encoded(0, "ended").body, "ended"


def begin(
    stream_id: UUID, after: int = 0, earlier: Earlier | None = None, *, replay: bool = False
) -> Encoded[AiSdkState]:
    """Return the chunks before a stream's first event, in the body those that follow number `after`.

    `earlier` is the message that the stream continues. `replay`: the client gets that message, too.
    """
    chunks = Chunks(AiSdkState({}, {}))
    chunks.begin(stream_id, earlier, replay=replay)
    return chunks.encoded(after)


def continue_after_wait(stream_id: UUID, earlier: Earlier | None = None) -> bytes:
    """Return the chunk with which a page that has a stream's message up to a wait goes on with that message."""
    message_id = f"msg_{stream_id.hex}" if earlier is None else earlier.id
    return frame({"type": "start", "messageId": message_id, "messageMetadata": {"streamId": str(stream_id)}})


# For a client that has the message that the stream continues, if any, and for a client that has nothing.
AI_SDK: Final = AiSdk("aisdk")
REPLAY: Final = AiSdk("aisdk.replay")
