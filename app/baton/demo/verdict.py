"""Decides whether an answer arrived whole, only from what its client saw. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Self

from ..client import Connected, Disconnected, Received, Sighting
from ..events import TOKEN_TYPES


@dataclass(frozen=True, slots=True)
class Resumption:
    """A connection that continued after event `seq`, `pause_seconds` after the previous one was lost."""

    seq: int
    from_pod: str
    to_pod: str
    pause_seconds: float


@dataclass(frozen=True, slots=True)
class Continuation:
    """Another worker continued the answer after event `seq`. The reader waited `pause_seconds` for the next token."""

    seq: int
    pause_seconds: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a client received of one stream.

    `pods` sent the events, in order; a pod that returns is named again. `text_is_whole`: all text together is the
    expected one, exactly once.
    """

    received: int
    last_seq: int
    missing: tuple[int, ...]
    repeated: tuple[int, ...]
    misplaced: tuple[int, ...]
    pods: tuple[str, ...]
    resumptions: tuple[Resumption, ...]
    continuations: tuple[Continuation, ...]
    resets: int
    text_is_whole: bool
    ends: tuple[tuple[int, str], ...]
    time_to_first_token_seconds: float | None
    duration_seconds: float | None

    @classmethod
    def of(cls, sightings: Sequence[Sighting], *, asked_at_seconds: float, expected_text: str) -> Self:
        """Count what the client saw since it created the stream."""
        events = [item for item in sightings if isinstance(item, Received)]
        times = Counter(item.seq for item in events)
        last_seq = max(times, default=0)
        tokens = (item.at_seconds for item in events if item.event.get("type") in TOKEN_TYPES)
        first_token_at = next(tokens, None)
        return cls(
            received=len(events),
            last_seq=last_seq,
            missing=tuple(seq for seq in range(1, last_seq + 1) if seq not in times),
            repeated=tuple(sorted(seq for seq, count in times.items() if count > 1)),
            misplaced=tuple(_misplaced(item.seq for item in events)),
            pods=tuple(pod for pod, _ in groupby(_senders(sightings))),
            resumptions=tuple(_resumptions(sightings)),
            continuations=tuple(_continuations(events)),
            resets=sum(item.event.get("type") == "reset" for item in events),
            text_is_whole=_text(events) == expected_text,
            ends=tuple((item.seq, _status(item)) for item in events if item.event.get("type") == "done"),
            time_to_first_token_seconds=None if first_token_at is None else first_token_at - asked_at_seconds,
            duration_seconds=events[-1].at_seconds - asked_at_seconds if events else None,
        )

    def complaints(self) -> list[str]:
        """Return a sentence for each fault: in the events, in the end, or because nothing changed its pod or worker."""
        found = []
        if self.missing:
            found.append(f"Missing: {numbers(self.missing)}.")
        if self.repeated:
            found.append(f"Received more than once: {numbers(self.repeated)}.")
        if self.misplaced:
            found.append(f"Received out of order: {numbers(self.misplaced)}.")
        if len(self.ends) != 1:
            found.append(f"The terminal event arrived {len(self.ends)} times instead of once.")
        found.extend(self._complaints_of_end())
        found.extend(self._complaints_of_answer())
        if len(self.pods) < 2:
            found.append("The answer did not change pods, so the demo shows nothing.")
        if not self.continuations:
            found.append("The answer did not change workers, so the demo shows nothing.")
        return found

    def _complaints_of_answer(self) -> Iterable[str]:
        if self.resets:
            yield "The answer started over."
        if not self.text_is_whole:
            yield "The text differs from the recorded answer."

    def _complaints_of_end(self) -> Iterable[str]:
        for seq, status in self.ends:
            if status != "completed":
                yield f"The stream did not complete: its status is {status}."
            if seq != self.last_seq:
                yield f"Event {self.last_seq} arrived after the terminal event {seq}."


def numbers(seqs: Sequence[int]) -> str:
    """Format ascending numbers, runs as ranges: 3, 7-9."""
    runs: list[list[int]] = []
    for seq in seqs:
        if runs and runs[-1][1] == seq - 1:
            runs[-1][1] = seq
        else:
            runs.append([seq, seq])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in runs[:10]]
    return ", ".join(shown) + (" …" if len(runs) > 10 else "")


def _misplaced(seqs: Iterable[int]) -> Iterable[int]:
    """Yield the numbers that first arrived after a higher one."""
    highest, seen = 0, set()
    for seq in seqs:
        if seq < highest and seq not in seen:
            yield seq
        seen.add(seq)
        highest = max(highest, seq)


def _senders(sightings: Iterable[Sighting]) -> Iterable[str]:
    """Yield the sending pod of each event."""
    pod = ""
    for item in sightings:
        if isinstance(item, Connected):
            pod = item.pod
        elif isinstance(item, Received):
            yield pod


def _resumptions(sightings: Iterable[Sighting]) -> Iterable[Resumption]:
    connected: Connected | None = None
    lost_at: float | None = None
    for item in sightings:
        if isinstance(item, Disconnected):
            lost_at = item.at_seconds if lost_at is None else lost_at
        elif isinstance(item, Connected):
            if connected is not None:
                pause = 0.0 if lost_at is None else item.at_seconds - lost_at
                yield Resumption(item.cursor, connected.pod, item.pod, pause)
            connected, lost_at = item, None


def _continuations(events: Sequence[Received]) -> Iterable[Continuation]:
    """Yield each change of the worker, with the time between the events around it."""
    for index, item in enumerate(events):
        if item.event.get("type") == "resumed":
            before, after = events[max(index - 1, 0)], events[min(index + 1, len(events) - 1)]
            yield Continuation(before.seq, after.at_seconds - before.at_seconds)


def _text(events: Iterable[Received]) -> str:
    return "".join(item.event["delta"] for item in events if item.event.get("type") == "text")


def _status(item: Received) -> str:
    return str(item.event.get("status"))
