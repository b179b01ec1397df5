"""The Durable Streams protocol: the messages of a stream as content, and as server-sent events.

A message is one event of the log: a JSON value, a text, or bytes, by the kind of the stream. The messages of a batch
are one `data` event: a JSON array, the text, or the bytes in base64. The `control` event after it has the offset to
resume with. It also says whether the client has all there is, which differs from client to client, so a `DurableReader`
adds it to what all clients share.

A stream whose messages are not Baton's events ends with an event of Baton's own in the log. That is no message: its
readers only see that the stream is closed.
"""

from __future__ import annotations

import base64
import random
import re
import time
from collections.abc import Callable, Sequence
from typing import ClassVar, Final

import orjson

from ..db.event_log import Batch
from ..db.external_streams import Kind
from . import sse
from .protocol import Encoded, Header, Over, Reader

# Caches that combine the requests of many clients keep the answers for this long.
_CURSOR_SECONDS: Final = 20
_MOST_SKIPPED_CURSORS: Final = 180
_CURSOR: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
# What ends a line in server-sent events; `str.splitlines` knows more.
_LINE_END: Final = re.compile("\r\n|\r|\n")


class Durable:
    """The dialect for one kind of stream. Its state is what the offsets of the stream begin with."""

    headers: ClassVar[Sequence[Header]] = (
        (b"content-type", b"text/event-stream"),
        (b"cache-control", b"no-cache, no-store, no-transform"),
        (b"x-accel-buffering", b"no"),
    )
    comment: ClassVar[bytes] = b":\n\n"
    reconnects: ClassVar[bool] = True

    def __init__(self, kind: Kind) -> None:
        self.name = f"durable.{kind}"
        self.kind = kind

    def encode(self, batch: Batch, state: str, after: int) -> Encoded[str]:
        """Encode the messages that follow number `after` as one event; as nothing if there are none."""
        found = messages(self.kind, batch, after)
        body = _event("data", self._text(found)) if found else b""
        return Encoded(body, batch.first_seq, batch.last_seq, state, "ended" if batch.terminal else None)

    def greeting(self, reconnect_milliseconds: int) -> bytes:
        """Return a comment, and when to reconnect, which the protocol's clients ignore."""
        return sse.retry_block(reconnect_milliseconds)

    def broken(self, state: str, code: str, message: str) -> tuple[bytes, Over]:
        """Return nothing: a client that reconnects gets the error."""
        return b"", "ended"

    def _text(self, found: Sequence[str]) -> str:
        content = content_of(self.kind, found)
        if self.kind == "bytes":
            return base64.b64encode(content).decode()
        return content.decode(errors="replace")


class DurableReader(Reader[str]):
    """One client's place: it gets a `control` event after the messages of each batch.

    `tail` returns the number of the last event that the pod knows of. `cursor` is the one that the client sent.
    """

    def __init__(self, dialect: Durable, prefix: str, after: int, cursor: int | None, tail: Callable[[], int]) -> None:
        super().__init__(dialect, Encoded(b"", 1, after, prefix), after)
        self._kind = dialect.kind
        self._least_cursor = cursor_after(cursor)
        self._tail = tail

    def read(self, batches: Sequence[Batch]) -> bytes:
        """Return the bytes for this client of the next batches."""
        return b"".join([super(DurableReader, self).read((batch,)) + self._control_of(batch) for batch in batches])

    def control(self, number: int, *, closed: bool) -> bytes:
        """Return the event that says that the client has all messages, the last with this number."""
        return self._control(number, up_to_date=True, closed=closed)

    def _control_of(self, batch: Batch) -> bytes:
        number = last_message(self._kind, batch.last_seq, ended=batch.terminal)
        return self._control(number, up_to_date=batch.last_seq >= self._tail(), closed=batch.terminal)

    def _control(self, number: int, *, up_to_date: bool, closed: bool) -> bytes:
        offset = f'"streamNextOffset":"{self.state}{number:010d}"'
        if closed:
            return b'event: control\ndata:{%b,"streamClosed":true}\n\n' % offset.encode()
        cursor = max(self._least_cursor, cursor_after(None))
        more = ',"upToDate":true' if up_to_date else ""
        return f'event: control\ndata:{{{offset},"streamCursor":"{cursor}"{more}}}\n\n'.encode()


def messages(kind: Kind, batch: Batch, after: int) -> list[str]:
    """Return the messages of a batch that follow number `after`, as the log has them."""
    lines = batch.lines
    if batch.terminal and kind != "events":
        del lines[-1]
    return lines[max(0, after + 1 - batch.first_seq) :]


def last_message(kind: Kind, last_seq: int, *, ended: bool) -> int:
    """Return the number of the last message, given that of the last event."""
    return last_seq - 1 if ended and kind != "events" else last_seq


def content_of(kind: Kind, found: Sequence[str]) -> bytes:
    """Join messages into the content that a client reads: a JSON array, or text or bytes."""
    if kind in {"events", "json"}:
        return f"[{','.join(found)}]".encode()
    return b"".join([_bytes_of(orjson.loads(line)) for line in found])


def cursor_after(given: int | None) -> int:
    """Return the number of the current interval of time, or a greater number than the client's.

    Clients repeat it in their next request. So no cache answers a client twice with the same response.
    """
    current = int(time.time() / _CURSOR_SECONDS)
    if given is None or given < current:
        return current
    return given + random.randint(1, _MOST_SKIPPED_CURSORS)


def parse_cursor(raw: str | None) -> int | None:
    """Return a client's cursor; None if it has none that was sent by a pod."""
    return int(raw) if raw and _CURSOR.fullmatch(raw) else None


def _bytes_of(message: str | dict[str, str]) -> bytes:
    return message.encode() if isinstance(message, str) else base64.b64decode(message["b64"])


def _event(name: str, data: str) -> bytes:
    # Clients drop one space after the colon, so a line that begins with one needs another. The rest have none.
    lines = [f"data: {line}" if line.startswith(" ") else f"data:{line}" for line in _LINE_END.split(data)]
    return f"event: {name}\n{chr(10).join(lines)}\n\n".encode()


DIALECTS: Final[dict[Kind, Durable]] = {kind: Durable(kind) for kind in ("events", "json", "text", "bytes")}
