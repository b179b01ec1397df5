"""Messages between a parent and its child: lines of JSON over a pair of sockets.

Each side writes few and short messages, except for metrics, which are written when they are asked for. So nothing waits
for the other side to read: a side that reads nothing for long is the one that is at fault.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any, Final, Self, TypeAlias

Message: TypeAlias = dict[str, Any]

# The longest message: all metrics of one process, with every label in use.
MOST_BYTES: Final = 64 << 20
# Further messages to a side that reads nothing are dropped. Each kind is sent again, or is followed by a signal.
MOST_WAITING_BYTES: Final = 1 << 20


class Channel:
    """One end. `messages` returns what the other side sends until it closes its end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> Self:
        """Take over this end of the pair."""
        return cls(*await asyncio.open_unix_connection(sock=end, limit=MOST_BYTES))

    def send(self, kind: str, **content: Any) -> None:
        """Send a message, and wait for nothing. What a closed channel is given is dropped."""
        transport = self._writer.transport
        if not transport.is_closing() and transport.get_write_buffer_size() < MOST_WAITING_BYTES:
            self._writer.write(encoded(kind, **content))

    async def messages(self) -> AsyncIterator[Message]:
        """Yield each message; return when the other side has closed its end, or died."""
        try:
            while (line := await self._reader.readline()).endswith(b"\n"):
                yield json.loads(line)
        except ConnectionError:
            return

    def close(self) -> None:
        """Close this end."""
        self._writer.close()


def encoded(kind: str, **content: Any) -> bytes:
    """Return a message as it is sent. The module `json` writes infinity, which a metric may be."""
    return json.dumps({"kind": kind, **content}).encode() + b"\n"
