"""`[DONE]`, the end of a stream of OpenAI's APIs: it distinguishes a complete answer from a lost connection.

The SDK stops there and does not report it. Some compatible servers send no other end: their last chunk has no
`finish_reason`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

import openai

# The event after the last one of a complete stream.
DONE: Final = object()

# A line of the body. It cannot occur within an event, since JSON escapes line ends.
_LINE: Final = re.compile(rb"[\r\n]data: ?\[DONE\]")
_LONGEST: Final = len(b"\ndata: [DONE]\r\n\r\n")


class Marked:
    """A streamed response whose events end with `DONE` if the body did."""

    def __init__(self, stream: openai.AsyncStream[Any]) -> None:
        self._stream = stream
        self._events = aiter(stream)
        self._body = stream.response.aiter_bytes
        self._last = b"\n"  # of the body, long enough to hold the mark
        self._over = False
        stream.response.aiter_bytes = self._watched  # type: ignore[method-assign]

    @property
    def response(self) -> Any:
        """The HTTP response."""
        return self._stream.response

    def __aiter__(self) -> AsyncIterator[Any]:
        """Return itself: it can be read once."""
        return self

    async def __anext__(self) -> Any:
        """Return the next event."""
        try:
            return await anext(self._events)
        except StopAsyncIteration:
            if self._over or not _LINE.search(self._last):
                raise
            self._over = True
            return DONE

    async def close(self) -> None:
        """Close the connection, or give it back."""
        await self._stream.close()

    async def _watched(self, chunk_size: int | None = None) -> AsyncGenerator[bytes, None]:
        """Yield the body, and remember its end. The SDK stops reading at the chunk with the mark."""
        async for chunk in self._body(chunk_size):
            self._last = self._last[-_LONGEST:] + chunk
            yield chunk
