"""The usage of a stream: the sum of its usage events, in total and for each attempt.

A usage event reports what one call of a model used. The events of a stream are added up, even those of several calls by
one generator and those of abandoned attempts, because the provider bills all of them. The epoch under which a worker
claimed the stream identifies an attempt, which here is any run, also one that was handed over.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

import orjson
from typing_extensions import TypedDict

from .events import USAGE_HEAD, without_surrogates

Counts: TypeAlias = dict[str, int | float]

# The largest integer that every JSON reader holds exactly.
_MOST: Final = 2**53 - 1


class AttemptUsage(TypedDict):
    """The usage of one attempt. Its log lines, trace and batches carry the same `epoch`."""

    epoch: int
    usage: Counts


class Bill:
    """The usage of a stream so far, by earlier attempts and by this one. Used on one event loop only."""

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
        """The usage of all attempts together; None if none was reported."""
        return total_of(self._by_epoch())

    @property
    def attempts(self) -> list[AttemptUsage] | None:
        """The usage of each attempt, in order; None if fewer than two reported any."""
        return by_attempt(self._by_epoch())

    def _by_epoch(self) -> dict[int, Counts]:
        found = {**self.earlier, **({} if self.own is None else {self._epoch: self.own})}
        return {epoch: counts for epoch, counts in found.items() if counts}


def numbers_only(usage: Mapping[str, Any]) -> Counts:
    """Return the finite numbers of a usage event, without anything else that it holds."""
    return {
        without_surrogates(str(name)): value
        for name, value in usage.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and "\0" not in str(name)
    }


def added(before: Mapping[str, Any] | None, more: Mapping[str, Any]) -> Counts:
    """Return the sum of two usages. If only one has a total, the other's is the sum of its input and output tokens."""
    counts = numbers_only(more)
    if before is None:
        return counts
    found = numbers_only(before)
    if "total_tokens" in found or "total_tokens" in counts:
        found, counts = _with_total(found), _with_total(counts)
    return {name: _sum(found.get(name, 0), counts.get(name, 0)) for name in {**found, **counts}}


def of_lines(batches: Iterable[tuple[int, bytes]]) -> dict[int, Counts]:
    """Return the usage of each epoch from the batches of a log: pairs of an epoch and its events as lines of JSON."""
    found: dict[int, Counts] = {}
    for epoch, events in batches:
        for line in events.split(b"\n"):
            if line.startswith(USAGE_HEAD):
                found[epoch] = added(found.get(epoch), orjson.loads(line))
    return found


def total_of(by_epoch: Mapping[int, Counts]) -> Counts | None:
    """Return the usage of all epochs together; None if there is none."""
    total: Counts | None = None
    for counts in by_epoch.values():
        total = added(total, counts)
    return total


def by_attempt(by_epoch: Mapping[int, Counts]) -> list[AttemptUsage] | None:
    """Return the usage of each epoch, in order; None for fewer than two epochs, for which the total is enough."""
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
