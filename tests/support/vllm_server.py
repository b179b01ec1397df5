"""A server with vLLM's Chat Completions API, which continues a partial assistant message if it is asked to.

With `continue_final_message: true` and `add_generation_prompt: false` the answer is what follows the last message. Its
tokens need not begin where those of the first answer did. The server stops generating when the client is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from tests.support.pacing import Pace
from tests.support.provider_server import (
    CLOSING,
    LAST_FRAME,
    ProviderServer,
    Received,
    Reply,
    data_frames,
    refusal,
)

PROMPT_TOKENS = 7


class VllmServer(ProviderServer):
    """Generates the answer `whole` in tokens of `size` characters, and counts what it is asked.

    `prefixes` has, for each request, the partial message that it continued; None if it asked for a new one.
    `reasoning` comes before a new answer. With `parses_reasoning` the server takes the text of a continued answer for
    reasoning, as vLLM does with some models. With `calls` the answer ends with a tool call.
    """

    def __init__(self, whole: str, *, size: int = 5, pace: Pace | None = None) -> None:
        super().__init__()
        self.whole = whole
        self.size = size
        self.pace = pace or Pace()
        self.reasoning = ""
        self.parses_reasoning = False
        self.refuses_prefixes = False
        self.refusals: list[Reply] = []  # the answers to the next requests
        self.calls = False
        self.prefixes: list[str | None] = []
        self.tokens = 0
        self.ended = 0
        self.aborted = 0

    async def respond(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Generate an answer until it ends, or the client is gone."""
        if self.refusals:
            return await self.send(self.refusals.pop(0), reader, writer)
        body = request.body
        continued = bool(body.get("continue_final_message"))
        if continued and (self.refuses_prefixes or body.get("add_generation_prompt", True)):
            message = "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
            return await self.send(_invalid(message), reader, writer)
        prefix = body["messages"][-1]["content"] if continued else None
        self.prefixes.append(prefix)
        if not self.whole.startswith(prefix or ""):
            return await self.send(_invalid("This server knows only one answer."), reader, writer)
        gone = asyncio.create_task(reader.read(1))
        try:
            await self.begin(CLOSING, writer)
            await self._generate(prefix, gone, writer)
        finally:
            gone.cancel()
        return False

    async def _generate(self, prefix: str | None, gone: asyncio.Task[bytes], writer: asyncio.StreamWriter) -> None:
        tokens = 0
        for delta in self._deltas(prefix):
            waiting = asyncio.create_task(self.pace.wait())
            await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                waiting.cancel()
                self.aborted += 1
                return
            tokens += 1
            self.tokens += 1
            await self._send(writer, choices=[{"index": 0, "delta": delta, "finish_reason": None}])
        reason = "tool_calls" if self.calls else "stop"
        await self._send(writer, choices=[{"index": 0, "delta": {}, "finish_reason": reason}])
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": tokens, "total_tokens": PROMPT_TOKENS + tokens}
        await self._send(writer, choices=[], usage=usage)
        self.ended += 1
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n" + LAST_FRAME)

    def _deltas(self, prefix: str | None) -> Iterator[dict[str, Any]]:
        """Yield the tokens of an answer."""
        if prefix is None:
            yield from ({"reasoning": token} for token in self._cut(self.reasoning))
        kind = "content" if prefix is None or not self.parses_reasoning else "reasoning"
        yield from ({kind: token} for token in self._cut(self.whole[len(prefix or "") :]))
        if self.calls:
            called = {"name": "search", "arguments": '{"q": 1}'}
            yield {"tool_calls": [{"index": 0, "id": "call_0", "type": "function", "function": called}]}

    def _cut(self, text: str) -> list[str]:
        return [text[start : start + self.size] for start in range(0, len(text), self.size)]

    async def _send(self, writer: asyncio.StreamWriter, **fields: Any) -> None:
        chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        await self.send_frame(data_frames(chunk | fields)[0], writer)


def _invalid(message: str) -> Reply:
    return refusal(400, {"message": message, "type": "BadRequestError", "param": None, "code": 400})
