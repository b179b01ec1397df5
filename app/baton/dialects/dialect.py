"""What a dialect is: a wire format, as a pure function of a stream's events.

A dialect turns each batch of the log into numbered frames. What it must remember from one batch to the next is its
state: a value that is given to it with each batch, returned changed, and never changed afterwards. So the encoding of
a batch is the same on every pod and for every client, is made once, and is kept with the batch.

The number of a frame is what its clients come back with. Natively it is the number of the event; a dialect whose
frames are not its events counts its frames, 1, 2, 3 …, which needs its state, and so reads the log from its beginning.
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

    `first` and `last` are the numbers of its frames, `last` below `first` where it has none. `over` says that this
    dialect has nothing more of this stream: "ended" after a last frame that said so, "cut" where only a cut connection
    can tell the client that what it has is not the whole.
    """

    body: bytes
    first: int
    last: int
    state: State
    over: Over | None = None


class Chain:
    """A text that grows: a state that has it shares what came before with the states before. Never changed."""

    __slots__ = ("_before", "_text")

    def __init__(self, text: str = "", before: Chain | None = None) -> None:
        self._text = text
        self._before = before

    def plus(self, text: str) -> Chain:
        """Return the text with more behind it."""
        return Chain(text, self) if text else self

    def __str__(self) -> str:
        """The whole."""
        parts = []
        node: Chain | None = self
        while node is not None:
            parts.append(node._text)
            node = node._before
        return "".join(reversed(parts))


class Dialect(Protocol[State]):
    """A wire format. The module of each dialect has one of these, or several that differ by a parameter."""

    name: str  # under which its encodings are kept: all that changes them is in it
    headers: ClassVar[Sequence[Header]]
    comment: ClassVar[bytes]  # keeps a silent connection open; empty where the format has nothing of the kind
    # Whether its clients come back by themselves after a clean end. The others take that for the end of the stream.
    reconnects: ClassVar[bool]

    def encode(self, batch: Batch, state: State, after: int) -> Encoded[State]:
        """Encode a batch, in `body` only the frames that follow number `after`."""
        ...

    def greeting(self, reconnect_milliseconds: int) -> bytes:
        """What a connection begins with."""
        ...

    def broken(self, state: State, code: str, message: str) -> tuple[bytes, Over]:
        """What says that the stream cannot be followed to its end, and how the connection then ends."""
        ...


class Reader(Generic[State]):
    """One client's place in a stream in a dialect: it gets the frames after number `after`."""

    def __init__(self, dialect: Dialect[State], opening: Encoded[State], after: int) -> None:
        """Begin after the frames of `opening`, which precede the first event."""
        self.dialect = dialect
        self.state = opening.state
        self.last = opening.last  # the number of the last frame so far, sent or left out
        self.over = opening.over
        self._after = after

    def read(self, batches: Sequence[Batch]) -> bytes:
        """Return the bytes that the batches, which follow those read before, have for this client."""
        if len(batches) == 1:
            return self._read(batches[0])
        return b"".join([self._read(batch) for batch in batches])

    def advance(self, encoded: Encoded[State]) -> None:
        """Go on behind a batch that the client was sent, or what of it is for this client."""
        self.state, self.last, self.over = encoded.state, encoded.last, encoded.over

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
        """Return the whole batch, from where it is kept for all."""
        kept = batch.encodings
        if kept is None:
            return self.dialect.encode(batch, self.state, 0)
        encoded: Encoded[State] | None = kept.get(self.dialect.name)
        if encoded is None:
            encoded = kept[self.dialect.name] = self.dialect.encode(batch, self.state, 0)
        return encoded
