r"""NOTIFY: the channels, the text of payloads, and how they are sent.

Workers announce the batches that they have appended. Such a payload holds several records, one after another. A record
begins with a line `stream first last flag`: the stream's id in 32 hexadecimal digits, and the numbers of its first and
last event. The flag is `e`; or `t` if the last event is the terminal one; or `-` if the record announces no batch. A
number after the flag is the length, in characters, of the events that follow on the next lines. A batch whose events do
not fit is announced without them, and pods read the log.

The last line is a stamp: `@` and the time of the oldest commit that the payload announces, in milliseconds since 1970
on the worker's clock. The line before it is the signature: `#<key id>:<MAC>` (see `signing_keys`). It covers the stamp
too. It comes first, since pods of the release without signatures look for the stamp at the end, and stop reading at a
line that begins with `#`.

Pods apply the events of signed payloads only. A payload without a valid signature is a hint: it may make its receiver
read the row or the log, and nothing else. All that pods send are hints. Every notification may be lost: its receiver
finds the same by polling.

The payloads of the other channels: a cancel and an input are the stream's id in 32 hexadecimal digits, a queued stream
has none, or `held`, and a kill is the name of the pod or worker, signed and stamped.

A payload has at most 7,999 bytes. Postgres folds equal payloads of a transaction into one, which loses nothing.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Final, NamedTuple
from uuid import UUID

from ..events import MAX_SEQ
from . import signing_keys
from .event_log import Append
from .postgres import Connection, Pool
from .signing_keys import SigningKeys

EVENTS_CHANNEL: Final = "baton_events"  # pods listen: batches were appended
QUEUE_CHANNEL: Final = "baton_queue"  # workers listen: a stream was queued
CANCEL_CHANNEL: Final = "baton_cancel"  # workers listen: a stream is to stop
INPUT_CHANNEL: Final = "baton_input"  # workers and pods listen: an input was sent to a stream
KILL_CHANNEL: Final = "baton_kill"  # a demo's pods listen: the pod of this name is to die; signed
KILL_WORKER_CHANNEL: Final = "baton_kill_worker"  # a demo's workers listen: the worker of this name is to die; signed

HELD: Final = "held"  # the payload about queued streams that no worker can claim before one admits them

MAX_BYTES: Final = 7999
SIGNATURE_BYTES: Final = len(f"\n#{signing_keys.GREATEST_ID}:") + signing_keys.MAC_LENGTH
STAMP_BYTES: Final = len("\n@1234567890123")
TRAILER_BYTES: Final = SIGNATURE_BYTES + STAMP_BYTES
_LENGTH_DIGITS: Final = 4

_NOTIFY = "SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload"
_QUEUE_USAGE = "SELECT pg_notification_queue_usage()"


class Announcement(NamedTuple):
    """A record of a payload. `events` are the batch's lines, if the payload has them.

    It is a tuple, which is cheap to make, because there is one for each announced batch.
    """

    stream: str
    first_seq: int
    last_seq: int
    terminal: bool
    events: str | None


# Sending.


async def notify(executor: Connection | Pool, channel: str, payloads: Sequence[str]) -> None:
    """Send notifications in one transaction, which must write nothing else.

    A commit that carries a NOTIFY holds a lock of the whole cluster while its WAL is flushed. Without WAL it does not
    wait.
    """
    await executor.execute(_NOTIFY, channel, payloads)


async def queue_usage(executor: Connection | Pool) -> float:
    """Return how full Postgres' queue of notifications is, from 0 to 1."""
    ratio: float = await executor.fetchval(_QUEUE_USAGE)
    return ratio


async def free_queue(executor: Connection | Pool) -> None:
    """Make Postgres drop the notifications that every listener has read.

    Otherwise it does so only when a notification is sent. So a full queue would stay full: none can be sent.
    """
    await queue_usage(executor)


def check_channel() -> str:
    """Return the name of a channel that nothing else uses, to test whether notifications arrive."""
    return f"baton_check_{secrets.token_hex(8)}"


async def notify_unprepared(connection: Connection, channel: str) -> None:
    """Send a notification without a payload, on a channel of ours, without preparing a statement.

    Behind a pooler, preparing a statement may fail by itself. One without parameters is not prepared.
    """
    await connection.execute(f"NOTIFY {channel}")


# Writing payloads.


def pack(
    appends: Iterable[Append], committed_at: float, keys: SigningKeys = signing_keys.NONE, *, with_events: bool = True
) -> list[str]:
    """Pack announcements of batches into as few payloads as they need, stamp them with that time, and sign them."""
    stamp = stamp_of(committed_at)
    payloads: list[str] = []
    current: list[str] = []
    size = 0
    for item in appends:
        record, record_bytes = _packed(item, with_events=with_events)
        if current and size + record_bytes > MAX_BYTES - TRAILER_BYTES:
            payloads.append(sign(keys, EVENTS_CHANNEL, "\n".join(current), stamp))
            current, size = [], 0
        current.append(record)
        size += record_bytes + 1
    if current:
        payloads.append(sign(keys, EVENTS_CHANNEL, "\n".join(current), stamp))
    return payloads


def record(stream: str, first_seq: int, last_seq: int, flag: str, events: str | None = None) -> str:
    """Return one record; `stream` is the id in 32 hexadecimal digits."""
    head = f"{stream} {first_seq} {last_seq} {flag}"
    return head if events is None else _with_events(head, events)


def erasure_payload(stream_id: UUID) -> str:
    """Return the payload that makes pods check whether a stream was erased."""
    return record(stream_id.hex, 0, 0, "-")


def change_payload(stream_id: UUID) -> str:
    """Return the payload that makes pods read the rest of a stream."""
    return record(stream_id.hex, 1, MAX_SEQ, "-")


def sign(keys: SigningKeys, channel: str, text: str, stamp: str) -> str:
    """Return the payload of a text and its stamp, signed with the newest key. Without keys it is not signed."""
    key_id = keys.newest_id
    if key_id is None:
        return f"{text}\n@{stamp}"
    return f"{text}\n#{key_id}:{keys.mac(key_id, channel, text, stamp)}\n@{stamp}"


def stamp_of(moment: float) -> str:
    """Return the stamp for a moment, which is given in seconds since 1970."""
    return f"{moment * 1000:.0f}"


def _packed(item: Append, *, with_events: bool) -> tuple[str, int]:
    """Return the record of a batch, and its size in bytes."""
    head = record(item.stream_id.hex, item.first_seq, item.last_seq, "e" if item.outcome is None else "t")
    size = len(head) + _LENGTH_DIGITS + 1 + len(item.events)
    if not with_events or size > MAX_BYTES - TRAILER_BYTES:
        return head, len(head)
    return _with_events(head, item.events.decode()), size


def _with_events(head: str, events: str) -> str:
    return f"{head}{len(events)}\n{events}"


# Reading payloads.


def is_signed(keys: SigningKeys, channel: str, payload: str) -> bool:
    """Return whether one of these keys signed the payload, for this channel and history."""
    text, mark, end = payload.rpartition("\n#")
    signature, at, stamp = end.partition("\n@")
    key_id, colon, mac = signature.partition(":")
    if not (mark and at and colon and key_id.isascii() and key_id.isdecimal() and mac.isascii()):
        return False
    if not (stamp.isascii() and stamp.isdecimal()):
        return False  # with a line break in the stamp, lines of a genuine text could be moved into it
    number = int(key_id[:10])
    return number in keys.secrets and hmac.compare_digest(mac, keys.mac(number, channel, text, stamp))


def has_unknown_key(keys: SigningKeys, payload: str) -> bool:
    """Return whether a payload is signed with a key that is not one of these."""
    _, mark, end = payload.rpartition("\n#")
    key_id = end.partition(":")[0]
    return bool(mark) and key_id.isdecimal() and int(key_id[:10]) not in keys.secrets


def committed_at(payload: str) -> float | None:
    """Read the stamp of a payload, in seconds since 1970."""
    at = payload.rfind("\n@", -STAMP_BYTES)
    stamp = payload[at + 2 :] if at >= 0 else ""
    return int(stamp) / 1000 if stamp.isdecimal() and stamp.isascii() else None


def named_stream(payload: str) -> UUID | None:
    """Read which stream a cancel or an input names; None if it names none."""
    try:
        return UUID(payload)
    except ValueError:
        return None


def kills(payload: str, name: str, made_at: float) -> bool:
    """Whether a kill, once its signature is verified, means the process of this name that was made at `made_at`.

    A kill that was sent before this process was made meant an earlier process of the same name.
    """
    sent_at = committed_at(payload)
    return payload.partition("\n")[0] == name and sent_at is not None and sent_at > made_at


def trailer(payload: str) -> str:
    """Return the signature and the stamp of a signed payload, as they stand after its records."""
    return "\n#" + payload.rpartition("\n#")[2]


def unpack(payload: str, wanted: Container[str]) -> Iterator[Announcement]:
    """Read the records about wanted streams.

    Where a payload is malformed, reading stops: a notification is only a hint.
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
                # In a relay, more or fewer events would give clients wrong numbers.
                if events is not None and events.count("\n") != last_seq - first_seq:
                    return
                yield Announcement(stream, first_seq, last_seq, flag == "t", events)
        except (IndexError, ValueError):
            return
        at = at if until is None else until + 1
