"""What a dialect is: a wire format, as a pure function of a stream's events.

A dialect turns each batch of the log into numbered frames. What it remembers from one batch to the next is its state:
an immutable value. It gets the state with each batch, and returns the next one. So the encoding of a batch is the same
on every pod and for every client. It is made once, and kept with the batch.

Clients return with the number of a frame. In the native dialect that is the number of the event. A dialect whose frames
are not the events counts its frames, 1, 2, 3 …: that needs its state, so it reads the log from the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Generic, Literal, NamedTuple, Protocol, TypeVar

from ..db.event_log import Batch

State = TypeVar("State")

Header = tuple[bytes, bytes]
Over = Literal["ended", "cut"]


class Encoded(NamedTuple, Generic[State]):
    """A batch in a wire format.

    `first` and `last` are the numbers of its frames; without frames, `last` is below `first`. `over` says that this
    dialect has no more frames of the stream: "ended" after a last frame that said so, "cut" if only a cut connection
    can show the client that the answer is incomplete.

    `pause` is set after the event `waiting`, in a dialect whose connections end while a stream waits. It is what such a
    connection sends last, and counts as no frame.
    """

    body: bytes
    first: int
    last: int
    state: State
    over: Over | None = None
    pause: bytes = b""


class Chain:
    """An immutable text that grows: a state shares the earlier text with the states before it."""

    __slots__ = ("_before", "_text")

    def __init__(self, text: str = "", before: Chain | None = None) -> None:
        self._text = text
        self._before = before

    def plus(self, text: str) -> Chain:
        """Return the text with more appended."""
        return Chain(text, self) if text else self

    def __str__(self) -> str:
        """Return the whole text."""
        parts = []
        node: Chain | None = self
        while node is not None:
            parts.append(node._text)
            node = node._before
        return "".join(reversed(parts))


class Dialect(Protocol[State]):
    """A wire format. Each dialect's module has one instance, or several that differ by a parameter."""

    # The key of its encodings: every parameter that changes them is in it. Metrics have it up to a colon, if any.
    name: str
    headers: ClassVar[Sequence[Header]]
    comment: ClassVar[bytes]  # a keep-alive; empty if the format has none
    # Whether its clients reconnect after a clean end. Other clients mistake that for the end of the stream.
    reconnects: ClassVar[bool]

    def encode(self, batch: Batch, state: State, after: int) -> Encoded[State]:
        """Encode a batch, in `body` only the frames that follow number `after`."""
        ...

    def greeting(self, reconnect_milliseconds: int) -> bytes:
        """Return what a connection begins with."""
        ...

    def broken(self, state: State, code: str, message: str) -> tuple[bytes, Over]:
        """Return the frame that says that the stream cannot be followed to its end, and how the connection ends."""
        ...


class Reader(Generic[State]):
    """One client's place in a stream in a dialect: it gets the frames after number `after`."""

    def __init__(self, dialect: Dialect[State], opening: Encoded[State], after: int) -> None:
        """Begin after the frames of `opening`, which precede the first event."""
        self.dialect = dialect
        self.state = opening.state
        self.last = opening.last  # the number of the last frame so far, sent or left out
        self.over = opening.over
        self.pause = opening.pause
        self._after = after

    def read(self, batches: Sequence[Batch]) -> bytes:
        """Return the bytes for this client of the next batches."""
        if len(batches) == 1:
            return self._read(batches[0])
        return b"".join([self._read(batch) for batch in batches])

    def advance(self, encoded: Encoded[State]) -> None:
        """Continue after a batch, whose frames the client was sent."""
        self.state, self.last, self.over, self.pause = encoded.state, encoded.last, encoded.over, encoded.pause

    def end_while_waiting(self) -> bytes:
        """End this client's connection, because the stream waits; return the last bytes."""
        self.over = "ended"
        return self.pause

    def _read(self, batch: Batch) -> bytes:
        if self.over:
            return b""
        encoded = self._encoded(batch)
        body = encoded.body
        if encoded.first <= self._after:
            body = self.dialect.encode(batch, self.state, self._after).body if encoded.last > self._after else b""
        self.advance(encoded)
        return body

    def _encoded(self, batch: Batch) -> Encoded[State]:
        """Return the whole batch, encoded once for all clients."""
        kept = batch.encodings
        if kept is None:
            return self.dialect.encode(batch, self.state, 0)
        encoded: Encoded[State] | None = kept.get(self.dialect.name)
        if encoded is None:
            encoded = kept[self.dialect.name] = self.dialect.encode(batch, self.state, 0)
        return encoded
