"""What a stream has used: the counts of its usage events, added up, and what each attempt had of them.

Each usage event is what one call of a model used, so the events of a stream are added up: those of a generator that
asks several times, and those of attempts that were given up, since the provider bills them all. An attempt is known by
the epoch under which its worker claimed the stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

import orjson
from typing_extensions import TypedDict

from .events import USAGE_HEAD, without_surrogates

Counts: TypeAlias = dict[str, int | float]

# What JSON's readers can hold exactly.
_MOST: Final = 2**53 - 1


class AttemptUsage(TypedDict):
    """What one attempt used. `epoch` is in the log's line, in the trace and in the batches of that attempt, too."""

    epoch: int
    usage: Counts


class Bill:
    """What a stream has used so far: by the attempts before this one, and by this one. It belongs to one event loop."""

    __slots__ = ("_epoch", "earlier", "own")

    def __init__(self, epoch: int, earlier: Mapping[int, Counts] | None = None) -> None:
        self._epoch = epoch
        self.earlier: Mapping[int, Counts] = earlier or {}
        self.own: Counts | None = None

    def add(self, event: Mapping[str, Any]) -> None:
        """Count a usage event of this attempt."""
        self.own = added(self.own, event)

    @property
    def total(self) -> Counts | None:
        """What all attempts used together; None if nothing was reported."""
        return total_of(self._by_epoch())

    @property
    def attempts(self) -> list[AttemptUsage] | None:
        """What each attempt used, in their order; None if fewer than two did."""
        return by_attempt(self._by_epoch())

    def _by_epoch(self) -> dict[int, Counts]:
        found = {**self.earlier, **({} if self.own is None else {self._epoch: self.own})}
        return {epoch: counts for epoch, counts in found.items() if counts}


def numbers_only(usage: Mapping[str, Any]) -> Counts:
    """Return the counts of a usage event, without its type and anything that is no number, or an infinite one."""
    return {
        without_surrogates(str(name)): value
        for name, value in usage.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and "\0" not in str(name)
    }


def added(before: Mapping[str, Any] | None, more: Mapping[str, Any]) -> Counts:
    """Return the counts of two usages, added up. One that has no total has the sum of its input and output as such."""
    counts = numbers_only(more)
    if before is None:
        return counts
    found = numbers_only(before)
    if "total_tokens" in found or "total_tokens" in counts:
        found, counts = _with_total(found), _with_total(counts)
    return {name: _sum(found.get(name, 0), counts.get(name, 0)) for name in {**found, **counts}}


def of_lines(batches: Iterable[tuple[int, bytes]]) -> dict[int, Counts]:
    """Return what each epoch used, by the batches of a log: each as its epoch, and its events as lines of JSON."""
    found: dict[int, Counts] = {}
    for epoch, events in batches:
        for line in events.split(b"\n"):
            if line.startswith(USAGE_HEAD):
                found[epoch] = added(found.get(epoch), orjson.loads(line))
    return found


def total_of(by_epoch: Mapping[int, Counts]) -> Counts | None:
    """Return what all epochs used together; None if none did."""
    total: Counts | None = None
    for counts in by_epoch.values():
        total = added(total, counts)
    return total


def by_attempt(by_epoch: Mapping[int, Counts]) -> list[AttemptUsage] | None:
    """Return what each epoch used, in their order; None if fewer than two did: then the total is enough."""
    if len(by_epoch) < 2:
        return None
    return [{"epoch": epoch, "usage": by_epoch[epoch]} for epoch in sorted(by_epoch)]


def _with_total(counts: Counts) -> Counts:
    if "total_tokens" in counts:
        return counts
    total = _sum(counts.get("input_tokens", 0), counts.get("output_tokens", 0))
    return {**counts, "total_tokens": total} if total else counts


def _sum(one: float, other: float) -> int | float:
    total = one + other
    return min(total, _MOST) if math.isfinite(total) else _MOST
