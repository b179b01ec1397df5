"""One stream's events between its generator and the log: buffered, batched and numbered. An event gets its number here.

The run puts lines in, and the writer takes them out in batches. This is the protocol between an outbox and its writer:

1. The outbox calls `on_ready` when it has something to write: at its first line, at the terminal one, at a state, after
   an answer that leaves something to write, and when a batch must be tried again. It may call it more than once.
2. The writer calls `take`, which returns the batch to write. Its events are numbered from the tail + 1 on. A batch may
   carry the newest state that the generator saved, and may have no events besides it.
3. The writer answers with exactly one of these calls:

   - `written`: the log has the batch.
   - `retry`: the log does not have it, and its place is still free.
   - `retry_after`: a former worker's batch took the place, so this one comes after that.
   - `end_with`: drop the batch and all lines, and write a terminal event for that loss instead.
   - `lose`: drop the batch and all lines, and write nothing more.

   While the outcome of a write is unknown the writer does not answer, and repeats the write.

What always holds:

- At most one batch is in flight. Until it is answered, `take` returns the same lines, so its boundaries do not change
  however often the write is repeated. Whether a lost write happened can then be read from the log.
- An event gets its number when its batch is taken, never before. It gets another number only by `retry_after`, while
  the log does not have it.
- `tail` is the highest number that the log is known to hold. Only answers change it.
- Nothing follows the terminal event. Lines that are put after it are ignored.
- `closed` is set by `written` with the terminal event, or by `lose`, and never cleared. Then `take` returns None.
- Everything runs on one event loop, and only `wait_for_room` awaits. So no call sees another one half done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final, NamedTuple
from uuid import UUID

from ..db.event_log import Append
from ..db.fence import Fence
from ..db.stream_ending import REWOUND
from ..db.stream_states import State
from ..events import encode_object, join_lines
from ..outcome import WORKER_LEFT_MESSAGE, WORKER_LOST_MESSAGE, Outcome
from ..usage import Bill, Counts


class _Saved(NamedTuple):
    """A state, how many of the lines that wait it covers, and how many inputs."""

    lines: int
    content: bytes
    inputs: int


class Lost(Enum):
    """Why an outbox cannot write any more."""

    FENCED = "another worker has claimed the stream, or it was erased"
    ENDED = "the stream has its terminal event already"
    REJECTED = "the database refused the data"
    REWOUND = "the log has lost its end"
    OVERTAKEN = "a former worker's events are in the log, and this stream must not restart"
    HANDED_OVER = "the events of a worker that left are in the log, and this stream must not restart"

    @property
    def outcome(self) -> Outcome | None:
        """The end that this gives the stream; None if it has one already, or if another worker ends it."""
        return _OUTCOMES.get(self)


_OUTCOMES: Final = {
    Lost.REJECTED: Outcome.failed("storage_rejected", "A part of this answer could not be stored."),
    Lost.REWOUND: REWOUND,
    Lost.OVERTAKEN: Outcome.failed("worker_lost", WORKER_LOST_MESSAGE),
    Lost.HANDED_OVER: Outcome.failed("worker_left", WORKER_LEFT_MESSAGE),
}


class Outbox:
    """A bounded buffer of encoded events."""

    __slots__ = (
        "_flight",
        "_flight_state",
        "_flushed",
        "_flying",
        "_lines",
        "_lost",
        "_max_bytes",
        "_max_events",
        "_may_reset",
        "_on_lost",
        "_on_ready",
        "_outcome",
        "_over",
        "_resumes",
        "_room",
        "_size",
        "_state",
        "_state_seq",
        "bill",
        "claim_token",
        "closed",
        "epoch",
        "forgets",
        "history",
        "interruption",
        "stop_with",
        "stream_id",
        "tail",
        "urgent",
    )

    def __init__(
        self,
        stream_id: UUID,
        epoch: int,
        tail: int,
        *,
        on_ready: Callable[[Outbox], None],
        on_lost: Callable[[Lost], None],
        max_events: int,
        max_bytes: int = 1 << 20,
        may_reset: bool = True,
        resumes: bool = False,
        claim_token: UUID | None = None,
        history: str | None = None,
        bill: Bill | None = None,
        interruption: str | None = None,
        stop_with: str | None = None,
    ) -> None:
        """`interruption` is why the run before ended. `stop_with`: see `stream_states.State`.

        `resumes`: the run looks into the log before it writes, so nothing that it finds there is a surprise.
        """
        self.history = history  # of the database, when the stream was claimed or its log last compared
        self.stream_id = stream_id
        self.epoch = epoch
        self.claim_token = claim_token
        self.bill = bill or Bill(epoch)  # what the stream has used, for its end
        self.tail = tail  # the highest number that the log is known to hold
        self.urgent = True  # the next batch must not wait: it has the first event, or the terminal one
        self.closed = asyncio.Event()  # the log has the terminal event, or this outbox cannot write any more
        self.interruption = interruption or "worker_lost"
        self.stop_with = stop_with
        self.forgets = epoch > 1  # the stream may have a state or steps, which its end deletes
        self._over = False  # nothing may follow the lines that are here
        self._lines: list[bytes] = []
        self._size = 0
        self._flying = False  # a batch was taken and not answered yet: `_flight` and `_flight_state`
        self._flight: list[bytes] = []
        self._state: _Saved | None = None  # the newest one that was not taken yet
        self._flight_state: _Saved | None = None
        self._state_seq: int | None = None  # the number that the last state in the database covers
        self._flushed: asyncio.Event | None = None
        self._outcome: Outcome | None = None
        self._room: asyncio.Event | None = None
        self._lost: Lost | None = None
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._may_reset = may_reset
        self._resumes = resumes
        self._on_ready = on_ready
        self._on_lost = on_lost

    @property
    def lost(self) -> Lost | None:
        """Why it cannot write any more; None if it can."""
        return self._lost

    @property
    def full(self) -> bool:
        """Whether the generator has to wait."""
        return len(self._lines) >= self._max_events or self._size >= self._max_bytes

    @property
    def ready(self) -> bool:
        """Whether there is something to write."""
        return self._unwritten and not self.closed.is_set()

    @property
    def _unwritten(self) -> bool:
        return bool(self._lines) or self._flying or self._state is not None

    def put(self, line: bytes) -> bool:
        """Add an event, unless the stream has ended. If this returns False, `wait_for_room` before the next one."""
        if self._over:
            return True
        lines = self._lines
        if not lines:
            self._on_ready(self)
        lines.append(line)
        self._size += len(line)
        return len(lines) < self._max_events and self._size < self._max_bytes

    def save(self, content: bytes, inputs: int = 0) -> None:
        """Save a state, as JSON, that covers all events that were put so far. It replaces one that still waits.

        It covers this many inputs, too.
        """
        if self._over:
            return
        self._state = _Saved(len(self._lines), content, inputs)
        self.forgets = True
        self._on_ready(self)

    def state_at_tail(self, content: bytes, inputs: int) -> State:
        """Return a state that covers the log as it is now, to be saved in another transaction. All is flushed."""
        return State(self.tail, content, self.stop_with, self._state_seq, inputs)

    @property
    def has_unsaved_state(self) -> bool:
        """Whether a state waits to be saved."""
        return self._state is not None or self._flight_state is not None

    async def flushed(self) -> None:
        """Wait until everything that was put or saved is in the database, or nothing can be written any more."""
        while self._unwritten and not self.closed.is_set():
            self._flushed = self._flushed or asyncio.Event()
            await self._flushed.wait()

    async def wait_for_room(self) -> None:
        """Wait until the writer has taken the lines. So a slow database slows the generator down."""
        while self.full and not self.closed.is_set():
            self._room = self._room or asyncio.Event()
            await self._room.wait()

    def finish(self, outcome: Outcome) -> None:
        """Add the terminal event, with what the stream has used."""
        self._outcome = outcome.billed(self.bill)
        self._over = True
        self._lines.append(self._outcome.encode())
        self.urgent = True
        self._on_ready(self)

    def take(self) -> Append | None:
        """Return the batch to write: the one in flight, or else a new one of all lines; None without anything."""
        if self.closed.is_set():
            return None
        if not self._flying:
            if not self._lines and self._state is None:
                return None
            self._fill_flight()
            self._make_room()
        ends = self._outcome is not None and not self._lines
        return Append(
            self.stream_id,
            self.epoch,
            self.tail + 1,  # here the events get their numbers
            self.tail + len(self._flight),
            join_lines(self._flight),
            self._outcome if ends else None,
            self.claim_token,
            None if self._flight_state is None else self._state_of(self._flight_state),
            self.forgets,
        )

    def _fill_flight(self) -> None:
        self._flying = True
        self._flight_state, self._state = self._state, None
        self._flight, self._lines, self._size = self._lines, [], 0
        if self._flight:
            self.urgent = False
        if self._outcome is not None and self._flight_state is not None:
            # The end deletes the state. If that calls `stop`, it must find the newest one.
            if self._outcome.status == "completed" or self.stop_with is None:
                self._flight_state = None
            else:
                self._lines, self.urgent = [self._flight.pop()], True

    def _state_of(self, saved: _Saved) -> State:
        return State(self.tail + saved.lines, saved.content, self.stop_with, self._state_seq, saved.inputs)

    def written(self, last_seq: int, *, terminal: bool) -> None:
        """Note that the log has the batch in flight, which ends at `last_seq`."""
        if self._flight_state is not None:
            self._state_seq = last_seq - len(self._flight) + self._flight_state.lines
        self.tail = last_seq
        self._flying, self._flight, self._flight_state = False, [], None
        if terminal:
            self._close()
        elif self._unwritten:
            # It came while that batch was repeated: the writer repeated it in answer to `on_ready`.
            self._on_ready(self)
        elif self._flushed is not None:
            self._flushed.set()
            self._flushed = None

    @property
    def in_flight(self) -> bool:
        """Whether a batch was taken and not answered yet."""
        return self._flying

    @property
    def fence(self) -> Fence:
        """What the stream's row must contain while this outbox may write."""
        return Fence(self.stream_id, self.epoch, self.claim_token)

    def still_has(self, item: Append) -> bool:
        """Whether a batch that was taken is still in flight at its place."""
        return self._flying and self.tail + 1 == item.first_seq and not self.closed.is_set()

    def reset(self, reason: str | None = None) -> None:
        """Make clients discard what came before. If the stream must not restart, keep it and end the stream.

        `reason` defaults to why the run before ended.
        """
        line = encode_object({"type": "reset", "reason": reason or self.interruption})
        if not self._may_reset:
            self.end_with(Lost.HANDED_OVER if self.interruption == "worker_left" else Lost.OVERTAKEN, self.tail)
        elif self._flight:
            self._flight.insert(0, line)
            if self._flight_state is not None:
                self._flight_state = self._flight_state._replace(lines=self._flight_state.lines + 1)
        else:
            self.put(line)

    def retry_after(self, tail: int, earlier: Mapping[int, Counts]) -> None:
        """Note that a former worker's batch took the place: the batch in flight comes after `tail`.

        `earlier` is what the former workers used, which may be in that batch.
        """
        believed_empty = self.tail == 0
        self.tail = tail
        self.bill.earlier = earlier
        if self._outcome is not None:
            self._outcome = self._outcome.billed(self.bill)
            (self._lines or self._flight)[-1] = self._outcome.encode()
        if believed_empty and not self._resumes:
            self.reset()
        self._on_ready(self)

    def retry(self) -> None:
        """Note that the batch in flight was not written. It will be tried again at its place."""
        self._on_ready(self)

    def end_with(self, lost: Lost, tail: int) -> None:
        """Drop everything that was not written, and write a terminal event for this loss after `tail` instead."""
        assert lost.outcome is not None, lost
        self.tail = tail
        self._drop(lost)
        self.finish(lost.outcome)

    def lose(self, lost: Lost) -> None:
        """Drop everything that was not written: this outbox cannot write any more."""
        self._close()
        self._drop(lost)

    def _close(self) -> None:
        self._over = True
        self.closed.set()
        if self._flushed is not None:
            self._flushed.set()

    def _drop(self, lost: Lost) -> None:
        self._flying, self._flight, self._lines, self._size = False, [], [], 0
        self._state = self._flight_state = None
        self._lost = lost
        self._make_room()
        self._on_lost(lost)

    def _make_room(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None
