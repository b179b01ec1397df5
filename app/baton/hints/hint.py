"""The hints that carry no events: each makes its receivers read the database, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from ..db import notifications
from ..db.notifications import CANCEL_CHANNEL, EVENTS_CHANNEL, INPUT_CHANNEL, QUEUE_CHANNEL
from ..db.signing_keys import SigningKeys


@dataclass(frozen=True, slots=True)
class Hint:
    """A payload for the listeners of a channel. On the channel of events it is about the stream, in hexadecimal."""

    channel: str
    payload: str
    stream: str = ""


# Workers claim: streams are in line.
QUEUED: Final = Hint(QUEUE_CHANNEL, "")
# Workers admit, and then claim: streams are queued, and not yet in line (see `stream_admission`).
HELD: Final = Hint(QUEUE_CHANNEL, notifications.HELD)


def of_cancel(stream_id: UUID) -> Hint:
    """Make the stream's worker read its row, which says that the stream must stop."""
    return Hint(CANCEL_CHANNEL, stream_id.hex)


def of_input(stream_id: UUID) -> Hint:
    """Make the stream's worker, or a pod where its producer waits, read its inputs."""
    return Hint(INPUT_CHANNEL, stream_id.hex)


def of_change(stream_id: UUID) -> Hint:
    """Make pods read the rest of a stream that was ended by a process other than its worker."""
    return Hint(EVENTS_CHANNEL, notifications.change_payload(stream_id), stream_id.hex)


def of_erasure(stream_id: UUID) -> tuple[Hint, Hint]:
    """Make pods and the stream's worker find out that a stream was erased."""
    return Hint(EVENTS_CHANNEL, notifications.erasure_payload(stream_id), stream_id.hex), of_cancel(stream_id)


def of_kill(channel: str, name: str, moment: float, keys: SigningKeys) -> Hint:
    """Make a demo's pod or worker kill itself, if it was started before `moment`, in seconds since 1970."""
    return Hint(channel, notifications.sign(keys, channel, name, notifications.stamp_of(moment)))
