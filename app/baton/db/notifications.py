"""The text of notifications about appended batches.

A payload holds several records, one a line. Each begins with `stream first last `: the stream's id in 32 hexadecimal
digits and the numbers of its first and last event. Then comes `e`, or `t` if the last event is the terminal one, or `-`
if it announces no batch. A number behind the letter says that so many characters of events follow on the next lines; a
batch whose events do not fit is announced without them, and pods read the log. The last line is a stamp: `@` and
the time of the oldest commit that the payload announces, in milliseconds since 1970 on the worker's clock. The line
before it is the seal (see `seals`).

Workers seal what they send, and pods apply the events of sealed payloads alone. All that pods send is unsealed: it only
makes its receiver read the row or the log.

A payload is at most 7,999 bytes, and Postgres folds equal payloads of a transaction into one, which loses nothing.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple
from uuid import UUID

from ..events import MAX_SEQ
from . import seals
from .event_log import Append
from .seals import SEAL_BYTES, Seals

EVENTS_CHANNEL = "baton_events"  # pods listen: batches that were appended
QUEUE_CHANNEL = "baton_queue"  # workers listen: a stream was queued
CANCEL_CHANNEL = "baton_cancel"  # workers listen: a stream is to stop
KILL_CHANNEL = "baton_kill"  # a demo's pods listen: the pod of this name is to die; sealed

MAX_BYTES = 7999
STAMP_BYTES = len("\n@1234567890123")
TRAILER_BYTES = SEAL_BYTES + STAMP_BYTES
_LENGTH_DIGITS = 4


class Announcement(NamedTuple):
    """That a batch was appended; `events` are its lines where they fitted in.

    A tuple, since one is made for each batch that is heard.
    """

    stream: str
    first_seq: int
    last_seq: int
    terminal: bool
    events: str | None


def gone(stream_id: UUID) -> str:
    """The payload that has pods see that a stream was erased. Pods of the release before believe it."""
    return f"{stream_id.hex} 0 0 -"


def hint(stream_id: UUID) -> str:
    """The payload that has pods read on in a stream, without saying how far."""
    return f"{stream_id.hex} 1 {MAX_SEQ} -"


def pack(
    appends: Iterable[Append], committed_at: float, sealing: Seals = seals.NONE, *, with_events: bool = True
) -> list[str]:
    """Pack announcements into as few payloads as they need, each with the stamp of that time, and sealed."""
    stamp = stamp_of(committed_at)
    payloads: list[str] = []
    current: list[str] = []
    size = 0
    for item in appends:
        record, record_bytes = _record(item, with_events=with_events)
        if current and size + record_bytes > MAX_BYTES - TRAILER_BYTES:
            payloads.append(sealing.seal(EVENTS_CHANNEL, "\n".join(current), stamp))
            current, size = [], 0
        current.append(record)
        size += record_bytes + 1
    if current:
        payloads.append(sealing.seal(EVENTS_CHANNEL, "\n".join(current), stamp))
    return payloads


def stamp_of(moment: float) -> str:
    """Return the stamp of a moment, in seconds since 1970."""
    return f"{moment * 1000:.0f}"


def committed_at(payload: str) -> float | None:
    """Read the stamp of a payload, in seconds since 1970."""
    at = payload.rfind("\n@", -STAMP_BYTES)
    stamp = payload[at + 2 :] if at >= 0 else ""
    return int(stamp) / 1000 if stamp.isdecimal() and stamp.isascii() else None


def unpack(payload: str, wanted: Container[str]) -> Iterator[Announcement]:
    """Read what a payload says of the wanted streams.

    One that is malformed yields nothing from there on: a notification is only a hint.
    """
    at = 0
    while at < len(payload):
        end = payload.find("\n", at)
        head = payload[at:] if end < 0 else payload[at:end]
        at += len(head) + 1
        try:
            stream, first, last, flags = head.split(" ", 3)
            flag, length = flags[0], flags[1:]
            until = at + int(length) if length and flag in "et" else None  # where its events end
            if until is not None and not at < until <= len(payload):
                return
            if stream in wanted:
                first_seq, last_seq = int(first), int(last)
                events = None if until is None else payload[at:until]
                # Applied to a relay, fewer events or more would give clients wrong numbers.
                if events is not None and events.count("\n") != last_seq - first_seq:
                    return
                yield Announcement(stream, first_seq, last_seq, flag == "t", events)
        except (IndexError, ValueError):
            return
        at = at if until is None else until + 1


def _record(item: Append, *, with_events: bool) -> tuple[str, int]:
    """One record, and its size in bytes."""
    flag = "e" if item.outcome is None else "t"
    head = f"{item.stream_id.hex} {item.first_seq} {item.last_seq} {flag}"
    size = len(head) + _LENGTH_DIGITS + 1 + len(item.events)
    if not with_events or size > MAX_BYTES - TRAILER_BYTES:
        return head, len(head)
    events = item.events.decode()
    return f"{head}{len(events)}\n{events}", size
