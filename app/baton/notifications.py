"""The text of notifications about appended batches.

A payload holds several batches, one after the other. Each begins with a line `stream first last flags`: the stream's id
in 32 hexadecimal digits, the numbers of its first and last event, and the letters `t` (terminal) and `e` (the events
follow, a line each). A batch whose events do not fit is announced without them, and pods read the log.
A payload is at most 7,999 bytes, and Postgres folds equal payloads of a transaction into one, which loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from uuid import UUID

from .events import MAX_SEQ
from .log import Append, Batch

EVENTS_CHANNEL = "baton_events"  # pods listen: batches that were appended
QUEUE_CHANNEL = "baton_queue"  # workers listen: a stream was queued
CANCEL_CHANNEL = "baton_cancel"  # workers listen: a stream is to stop


MAX_BYTES = 7999


@dataclass(frozen=True, slots=True)
class Announcement:
    """That a batch was appended. `lines` are its events where they fitted in."""

    stream: str
    first_seq: int
    last_seq: int
    terminal: bool
    lines: list[str] | None

    @property
    def gone(self) -> bool:
        """Whether it says that the stream was erased."""
        return self.last_seq == 0

    def batch(self) -> Batch | None:
        """The batch itself, if the notification brought it."""
        if self.lines is None:
            return None
        return Batch(self.first_seq, self.last_seq, self.terminal, self.lines)


def gone(stream_id: UUID) -> str:
    """The payload that says that a stream was erased."""
    return f"{stream_id.hex} 0 0 -"


def hint(stream_id: UUID) -> str:
    """The payload that has pods read on in a stream, without saying how far."""
    return f"{stream_id.hex} 1 {MAX_SEQ} -"


def pack(appends: Iterable[Append], *, with_events: bool = True) -> list[str]:
    """Pack announcements into as few payloads as they need."""
    payloads: list[str] = []
    current: list[bytes] = []
    size = 0
    for item in appends:
        record = _record(item, with_events=with_events)
        if current and size + 1 + len(record) > MAX_BYTES:
            payloads.append(b"\n".join(current).decode())
            current, size = [], 0
        current.append(record)
        size += 1 + len(record)
    if current:
        payloads.append(b"\n".join(current).decode())
    return payloads


def unpack(payload: str) -> Iterator[Announcement]:
    """Read a payload. One that is malformed yields nothing from there on: a notification is only a hint."""
    lines = payload.split("\n")
    at = 0
    while at < len(lines):
        fields = lines[at].split(" ")
        at += 1
        try:
            stream, first, last, flags = fields[0], int(fields[1]), int(fields[2]), fields[3]
        except (IndexError, ValueError):
            return
        events = None
        if "e" in flags:
            events = lines[at : at + last - first + 1]
            at += last - first + 1
            if len(events) != last - first + 1:
                return
        yield Announcement(stream, first, last, "t" in flags, events)


def _record(item: Append, *, with_events: bool) -> bytes:
    flags = "t" if item.outcome is not None else ""
    head = f"{item.stream_id.hex} {item.first_seq} {item.last_seq} {flags}"
    if with_events and len(head) + 2 + len(item.events) <= MAX_BYTES:
        return b"%se\n%s" % (head.encode(), item.events)
    return f"{head}-".encode()
