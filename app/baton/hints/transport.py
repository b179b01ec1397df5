"""The seam between Baton and what carries its hints: send, listen, state.

A transport delivers each message at most once to each process that listens, on the event loop. It may lose, repeat and
reorder messages, and deliver what others forge. It reconnects by itself, with backoff. Handlers take O(1) time, or hand
the work to a task.

Its owner passes the handlers of the channels, and two callbacks. `on_state` gets each change of the state. `on_gap` is
called whenever messages may have been missed: the owner then catches up from the database. While the state is degraded,
the owner's own polls find what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, Protocol, TypeAlias

from ..db.postgres import Connection

Handlers: TypeAlias = Mapping[str, Callable[[str], None]]


class HintState(Enum):
    """What a transport is doing."""

    CONNECTING = "connecting"
    LISTENING = "listening"
    DEGRADED = "degraded"
    POLLING = "polling"  # by design: there are no hints

    @property
    def arrives(self) -> bool | None:
        """Whether hints arrive now; None if there are none."""
        return None if self is HintState.POLLING else self is HintState.LISTENING


class Message(NamedTuple):
    """A payload for a channel. `stream`, in hexadecimal, is the one that it is about; empty if it is about several."""

    channel: str
    payload: str
    stream: str = ""


@dataclass(frozen=True, slots=True)
class Owner:
    """What a transport calls, on the event loop: the handlers by channel, and the two callbacks."""

    handlers: Handlers
    on_state: Callable[[HintState], None]
    on_gap: Callable[[], None]


class Listening(Protocol):
    """That a process listens to the hints about one stream's events."""

    async def begin(self) -> None:
        """Return once they arrive here, or once it is clear that they do not arrive soon."""

    def end(self) -> None:
        """Stop listening."""


class Everything:
    """Listening to the hints of a stream where those of all streams arrive in any case, or none."""

    async def begin(self) -> None:
        """Return at once."""

    def end(self) -> None:
        """Change nothing."""


EVERYTHING: Final = Everything()


class Transport(Protocol):
    """Carries messages. Its owner awaits `run()`."""

    @property
    def by_stream(self) -> bool:
        """Whether a message on the channel of events must be about one stream."""

    @property
    def state(self) -> HintState:
        """What it is doing."""

    def listen(self, stream: str) -> Listening:
        """Listen to the hints about a stream's events, until the end of what is returned.

        The other channels are listened to in any case.
        """

    async def send(self, connection: Connection, messages: Sequence[Message]) -> None:
        """Send messages, or drop them. `connection` is one to the database, for a transport that needs it.

        Raises:
            any of `reconnecting.FAILURES`: the connection is lost, or the database refuses them.
        """

    async def run(self) -> None:
        """Listen until cancelled."""
