"""When the tokens of streams came: in one database, or in all of a worker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Self

from prometheus_client.core import Metric

from .numbers import SECONDS_TO_MINUTES, Histogram, LabeledHistogram


class TokenMetrics:
    """The times of tokens. Each token is observed once, in one of the two histograms."""

    def __init__(self) -> None:
        self.time_to_first_token_seconds = LabeledHistogram(
            "baton_time_to_first_token_seconds",
            "From a stream's claim to its first token",
            SECONDS_TO_MINUTES,
            "generator",
            "model",
        )
        self.inter_token_seconds = Histogram(
            "baton_inter_token_seconds",
            "Between two tokens of a stream, as its generator yields them",
            SECONDS_TO_MINUTES,
        )

    @classmethod
    def sum_of(cls, parts: Iterable[TokenMetrics]) -> Self:
        """Add up those of several databases."""
        total = cls()
        for part in parts:
            total.time_to_first_token_seconds.add(part.time_to_first_token_seconds)
            total.inter_token_seconds.add(part.inter_token_seconds)
        return total

    @property
    def count(self) -> int:
        """How many tokens the generators have yielded."""
        return self.time_to_first_token_seconds.count + self.inter_token_seconds.count

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics for Prometheus."""
        yield from self.time_to_first_token_seconds.collect()
        yield from self.inter_token_seconds.collect()
