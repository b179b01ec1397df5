"""What a generator yields, on its way into the outbox: validated, joined, compared with the past, bounded and counted.

There is one feed for each run. A run that may continue an earlier one gives it the `past`. The first item then decides:
the generator continues after the last event, repeats itself from an earlier one, or starts the answer over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

from ..db.stream_waiting import Wait
from ..errors import InvalidEvent
from ..events import TOKEN_TYPES, encode_event, encode_object, encode_text
from ..generators import Yielded
from ..generators.inbox import Inbox
from ..observability.metrics import Labels, TokenMetrics
from ..outcome import Outcome
from .outbox import Outbox
from .past import Past
from .repetition import OutputDiffers, Repetition
from .surrogate_pairs import SurrogateJoiner
from .tool_calls import ToolCalls


class Halt(Enum):
    """Why a generator is not asked for more."""

    BOUND = auto()  # the stream has exceeded one, and ends
    NO_ROOM = auto()  # in the outbox, because the database is slow
    STATE = auto()  # it comes before the first event, and must be saved before that
    WAIT = auto()  # the run ends, and the stream waits for an input


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of a stream: bytes in one event, number of events, bytes of all of them, and bytes in one state."""

    max_event_bytes: int
    max_events: int
    max_bytes: int
    max_state_bytes: int

    def end_of(self, line: bytes, events: int) -> Outcome:
        """Return the end of a stream that exceeds a bound with this event, its number `events`."""
        if len(line) > self.max_event_bytes:
            return Outcome.failed("event_too_large", "A part of this answer is too large, and the answer was ended.")
        if events > self.max_events:
            return Outcome.failed("too_many_events", "This answer is too long, and was ended.")
        return Outcome.failed("stream_too_large", "This answer is too large, and was ended.")


class Feed:
    """Puts what one generator yields into the outbox of its stream.

    `exceeded` is the end of the stream once an event exceeds a bound, and `wait` is what the stream waits for once the
    run has ended. Nothing is taken after either.
    """

    def __init__(
        self,
        outbox: Outbox,
        bounds: Bounds,
        metrics: TokenMetrics,
        labels: Labels,
        *,
        started_at: float,
        saves: bool,
        inbox: Inbox | None = None,
    ) -> None:
        """`started_at`: when the run began. `saves`: the generator may save states, which cover the inbox's inputs."""
        self.outbox = outbox
        self.exceeded: Outcome | None = None
        self.wait: Wait | None = None
        self.saved_inputs: int | None = None  # how many the last state of this run covers
        self._inbox = inbox or Inbox()
        self.finish_reason = "stop"
        self.tokens = 0  # of the answer, including what this run continues
        self.size_bytes = 0  # of the same events
        self.first_token_at: float | None = None
        self.continued = False  # the generator continues what an earlier run has begun
        self._bounds = bounds
        self._saves = saves
        self._events = outbox.tail  # including a former worker's
        self._past: Past | None = None  # what the generator may continue, until it has said whether it does
        self._repetition: Repetition | None = None
        self._yielded = False  # an event of this run is in the outbox
        self._calls = ToolCalls()
        self._surrogates = SurrogateJoiner(self._calls)
        self._started_at = self._now = self._last_token_at = started_at
        self._time_to_first_token_seconds = metrics.time_to_first_token_seconds.of(*labels)
        self._inter_token_seconds = metrics.inter_token_seconds

    def follow(self, found: Past) -> None:
        """Let the generator continue what earlier runs have left."""
        self._past, self._events = found, self.outbox.tail

    def take(self, item: Yielded, now: float) -> Halt | None:
        """Put what the generator yielded at `now` into the outbox; return why it may not be asked for more yet.

        Raises:
            InvalidEvent: it is not an event.
            OutputDiffers: the generator repeats itself, and not what the log has.
        """
        self._now = now
        if self._past is not None and self._continues_with(item):
            return None
        halt = None
        for whole in self._surrogates.join(item):
            line = self._encode(whole)
            if line is None:
                if self.exceeded is not None:
                    return Halt.BOUND
                if self.outbox.has_unsaved_state and not self._yielded:
                    halt = Halt.STATE
            elif not self._admit(line):
                return Halt.BOUND
            else:
                self._yielded = True
                if not self.outbox.put(line):
                    halt = Halt.NO_ROOM
        return halt if self.wait is None else Halt.WAIT

    def _continues_with(self, item: Yielded) -> bool:
        """Continue an earlier run if this first item says so, else start the answer over; return whether it says so."""
        found, self._past = self._past, None
        assert found is not None
        if not isinstance(item, Mapping) or item.get("type") != "continue":
            if not found.empty:
                self.start_over(self.outbox.interruption)
            return False
        after = item.get("after")
        if isinstance(after, bool) or not isinstance(after, int) or not found.state_seq <= after <= found.so_far.seq:
            raise InvalidEvent(
                f"A continue event's 'after' must be a number from {found.state_seq} to {found.so_far.seq}, "
                f"not {after!r:.80}."
            )
        repetition = Repetition(found.after(after))
        self._repetition = None if repetition.complete else repetition
        for event in found.calls:
            self._calls.note(event)
        self.continued = True
        self.tokens, self.size_bytes = found.tokens, found.size_bytes
        return True

    def start_over(self, reason: str) -> None:
        """Make viewers discard what earlier runs yielded, and forget it here."""
        self._past = self._repetition = self.wait = None
        self._calls = ToolCalls()
        self._surrogates = SurrogateJoiner(self._calls)
        self.finish_reason = "stop"
        self.continued, self.tokens, self.size_bytes = False, 0, 0
        self.outbox.reset(reason)

    def end(self) -> None:
        """Handle a generator that has ended, perhaps before it yielded anything or repeated everything.

        Raises:
            OutputDiffers: it has repeated only a part.
        """
        if self._repetition is not None:
            raise OutputDiffers
        if self._past is not None and not self._past.empty:
            self.start_over(self.outbox.interruption)

    def put_rest(self) -> None:
        """Write replacements for the characters that the generator did not complete."""
        if self._repetition is not None:
            return  # the log has them
        for item in self._surrogates.rest():
            # The tool call that a surrogate belongs to may have been refused.
            with contextlib.suppress(InvalidEvent):
                line = self._encode(item)
                if line is not None and self._admit(line):
                    self.outbox.put(line)

    def _admit(self, line: bytes) -> bool:
        """Count an event and return True, unless it exceeds a bound."""
        bounds, size = self._bounds, len(line)
        self._events += 1
        self.size_bytes += size
        if size <= bounds.max_event_bytes and self._events <= bounds.max_events and self.size_bytes <= bounds.max_bytes:
            return True
        self.exceeded = bounds.end_of(line, self._events)
        return False

    def _encode(self, item: Yielded) -> bytes | None:
        """Encode what the generator yielded; return None if it makes no event.

        Raises:
            InvalidEvent: it is not an event.
            OutputDiffers: it repeats itself, and not what the log has.
        """
        if self._repetition is not None:
            new = self._unrepeated(item, self._repetition)
            if new is None:
                return None
            item = new
        if isinstance(item, str):
            if not item:
                return None
            self._count_token()
            return encode_text(item)
        if not isinstance(item, Mapping):
            raise InvalidEvent(f"A generator must yield str or dict, not {type(item).__name__}.")
        return self._encode_mapping(item)

    def _unrepeated(self, item: Yielded, repetition: Repetition) -> Yielded | None:
        """Return what is new in an item of a generator that repeats itself. Its states are as of what it repeats."""
        if isinstance(item, Mapping):
            kind = item.get("type")
            if kind in {"finish", "state", "wait"}:
                return None if kind == "state" else item
            encode_event(item)
        elif not isinstance(item, str):
            return item
        new = repetition.strip(item)
        if repetition.complete:
            self._repetition = None
        return new

    def _save(self, item: Mapping[str, Any]) -> None:
        """Save a state as of what was yielded so far.

        Raises:
            InvalidEvent: see `_state_of`.
        """
        content = self._state_of(item)
        if content is not None:
            self.outbox.save(content, self._inbox.received)

    def _state_of(self, item: Mapping[str, Any]) -> bytes | None:
        """Return a state as JSON, and note that it is saved.

        Return None if it covers half a character: the log cannot hold that, so no run could continue there.

        Raises:
            InvalidEvent: it is not JSON, is too large, or the generator does not say that it can continue.
        """
        if not self._saves:
            raise InvalidEvent("Only a generator that is marked with @baton.continues may save a state.")
        if "state" not in item:
            raise InvalidEvent("A state needs 'state', any JSON.")
        content = encode_object(item["state"])
        if len(content) > self._bounds.max_state_bytes:
            raise InvalidEvent(
                f"The state has {len(content)} bytes, and BATON_MAX_STATE_BYTES allows {self._bounds.max_state_bytes}."
            )
        if self._surrogates.holds:
            return None
        self.saved_inputs = self._inbox.received
        return content

    def _wait(self, item: Mapping[str, Any]) -> None:
        """Note that the stream is to wait. The state that comes with that is saved when the wait begins.

        Raises:
            InvalidEvent: the generator does not say that it can continue, or the wait is malformed.
        """
        if not self._saves:
            raise InvalidEvent("Only a generator that is marked with @baton.continues may wait.")
        reason, until = item.get("for"), item.get("until")
        line = encode_object({"type": "waiting", "for": reason})
        if len(line) > self._bounds.max_event_bytes:
            raise InvalidEvent(f"A wait may have {self._bounds.max_event_bytes} bytes as JSON, with what it is 'for'.")
        if isinstance(until, datetime.datetime):
            if until.utcoffset() is None:
                raise InvalidEvent("A wait's 'until' needs a time zone: datetime.now(UTC) + timedelta(hours=1).")
        elif until is not None and not _are_seconds(until):
            raise InvalidEvent(f"A wait's 'until' must be a datetime or a number of seconds, not {until!r:.80}.")
        state = self._state_of(item) if "state" in item else None
        # The event is appended when the wait begins, and counts like the others.
        if self._admit(line):
            self.wait = Wait(reason, until, state, self._inbox.received)

    def save_with_wait(self) -> None:
        """Save the state that came with a wait that does not begin: the end of the stream may need it."""
        if self.wait is not None and self.wait.state is not None:
            self.outbox.save(self.wait.state, self.wait.inputs)

    def _encode_mapping(self, item: Mapping[str, Any]) -> bytes | None:
        kind = item.get("type")
        if kind == "finish":
            self.finish_reason = _finish_reason(item)
            return None
        if kind == "state":
            self._save(item)
            return None
        if kind == "wait":
            self._wait(item)
            return None
        if kind == "continue" and item.get("after") == 0 and not self._yielded:
            return None  # there is nothing to continue, and it starts from nothing
        if kind in {"text", "reasoning"} and item.get("delta") == "" and len(item) == 2:
            return None  # it says nothing; the signature of a provider comes with an empty delta, too
        line = encode_event(item)
        if kind == "usage":
            self.outbox.bill.add(item)
        elif kind in TOKEN_TYPES:
            if kind == "tool_call":
                self._calls.note(item)
            self._count_token()
        return line

    def _count_token(self) -> None:
        now = self._now
        if self.first_token_at is None:
            self.first_token_at = now
            if not self.continued:
                self._time_to_first_token_seconds.observe(now - self._started_at)
        else:
            self._inter_token_seconds.observe(now - self._last_token_at)
        self._last_token_at = now
        self.tokens += 1


def _are_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _finish_reason(item: Mapping[str, Any]) -> str:
    """Return why the model stopped, in lower case. Some providers use capitals.

    Raises:
        InvalidEvent: it is not a string.
    """
    reason = item.get("finish_reason")
    if not isinstance(reason, str | None):
        raise InvalidEvent(f"A finish event's 'finish_reason' must be a string, not {type(reason).__name__}.")
    return (reason or "stop").lower()
