"""Histograms and labeled counters in plain numbers."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

MILLISECONDS_TO_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SECONDS_TO_MINUTES: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
COUNTS: Final = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0)

MOST_VALUES: Final = 50
OTHER: Final = "other"


class Histogram:
    """Counts how many values fall into each bucket."""

    __slots__ = ("_bounds", "_counts", "_documentation", "_name", "_sum")

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add(self, other: Histogram) -> None:
        """Add the values of another histogram with the same buckets."""
        self._counts = [own + more for own, more in zip(self._counts, other._counts, strict=True)]
        self._sum += other._sum

    @property
    def counts(self) -> Sequence[int]:
        """How many values fell into each bucket; the last bucket is for values above all bounds."""
        return tuple(self._counts)

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self._counts)

    @property
    def sum(self) -> float:
        """The sum of all values."""
        return self._sum

    def buckets(self) -> list[tuple[str, float]]:
        """Return the cumulative count up to each bound, as Prometheus expects it."""
        bounds = [*map(str, self._bounds), "+Inf"]
        return list(zip(bounds, map(float, itertools.accumulate(self._counts)), strict=True))

    def collect(self) -> Iterator[Metric]:
        """Yield the metric for Prometheus."""
        yield HistogramMetricFamily(self._name, self._documentation, buckets=self.buckets(), sum_value=self._sum)


def quantile(bounds: Sequence[float], counts: Sequence[int], part: float) -> float | None:
    """Estimate the quantile at `part` (0 to 1), as Prometheus does; None without values.

    Values are assumed to lie evenly within a bucket, and at the last bound if they are above it.
    """
    target = part * sum(counts)
    if not target:
        return None
    below = 0
    for lower, upper, count in zip((0.0, *bounds), bounds, counts, strict=False):
        if below + count >= target:
            return lower + (upper - lower) * (target - below) / count
        below += count
    return bounds[-1]


class LabeledHistogram:
    """A histogram for each combination of labels. The caller keeps the combinations few."""

    __slots__ = ("_bounds", "_children", "_documentation", "_labels", "_name")

    def __init__(self, name: str, documentation: str, bounds: Sequence[float], *labels: str) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = bounds
        self._labels = labels
        self._children: dict[tuple[str, ...], Histogram] = {}

    def of(self, *values: str) -> Histogram:
        """Return the histogram of these label values."""
        if values not in self._children:
            self._children[values] = Histogram(self._name, self._documentation, self._bounds)
        return self._children[values]

    def add(self, other: LabeledHistogram) -> None:
        """Add the values of another one with the same labels and buckets."""
        for values, child in list(other._children.items()):
            self.of(*values).add(child)

    @property
    def count(self) -> int:
        """How many values all histograms have observed."""
        return sum(child.count for child in list(self._children.values()))

    def collect(self) -> Iterator[Metric]:
        """Yield the metric for Prometheus."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, child in list(self._children.items()):
            family.add_metric(values, child.buckets(), child.sum)
        yield family


class LabeledCounter:
    """A counter for each combination of labels.

    The last label may have any values: the first 50 are counted separately, all others as "other". The caller keeps
    the values of the other labels few.
    """

    __slots__ = ("_counts", "_documentation", "_labels", "_last", "_name")

    def __init__(self, name: str, documentation: str, *labels: str) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._last: set[str] = set()

    def add(self, *values: str, count: float = 1) -> None:
        """Add to the counter of these label values."""
        if values[-1] not in self._last and len(self._last) >= MOST_VALUES:
            values = (*values[:-1], OTHER)
        else:
            self._last.add(values[-1])
        self._counts[values] += count  # type: ignore[assignment]

    def collect(self) -> Iterator[Metric]:
        """Yield the metric for Prometheus."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, count in list(self._counts.items()):
            family.add_metric(values, count)
        yield family
