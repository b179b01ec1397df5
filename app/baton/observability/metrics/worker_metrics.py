"""The metrics of a worker."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .numbers import (
    COUNTS,
    MILLISECONDS_TO_SECONDS,
    OTHER,
    SECONDS_TO_MINUTES,
    Histogram,
    LabeledCounter,
    LabeledHistogram,
)
from .token_metrics import TokenMetrics

# The counts of a usage that are metrics, and their label `type`. Input includes cached, output includes reasoning.
_TOKEN_TYPES: Final = {
    "input_tokens": "input",
    "output_tokens": "output",
    "cached_tokens": "cached",
    "cache_write_tokens": "cache_write",
    "reasoning_tokens": "reasoning",
}


class Labels(NamedTuple):
    """The labels `generator` and `model`: each a name from the settings, "other", or empty if it is not known."""

    generator: str = ""
    model: str = ""


class Names:
    """The names allowed as labels. Clients may choose any other name, and each would make a time series."""

    def __init__(self, generators: Set[str] = frozenset(), models: Set[str] = frozenset()) -> None:
        self._generators = generators
        self._models = models

    def labels(self, generator: str, model: str | None = None) -> Labels:
        """Return the labels of a generator and of the model that it calls."""
        return Labels(_label(generator, self._generators), _label(model, self._models))


def _label(name: str | None, names: Set[str]) -> str:
    if not name:
        return ""
    return name if name in names else OTHER


class WorkerMetrics(Collector):
    """All metrics of a worker process, over all its databases.

    `silences` returns, for each running stream, its generator and how many seconds it has been silent. The thread that
    answers Prometheus calls it, so a generator that blocks the event loop is seen as silent too.
    """

    def __init__(self, concurrency: int = 0, *, silent_after_seconds: float = math.inf) -> None:
        self.concurrency = concurrency
        self.silences: Callable[[], Iterable[tuple[str, float]]] = tuple
        self._silent_after_seconds = silent_after_seconds
        self._tokens: list[TokenMetrics] = []
        self._claims: dict[str, Callable[[], bool]] = {}
        self.running = 0
        self.fenced = 0
        self.appended_again = 0
        self.notifications = 0
        self._hints: dict[str, bool | None] = {}  # whether they arrive, by database; None: there are none
        self.flushed_bytes = 0
        self.flush_failures = 0
        self.ended = LabeledCounter(
            "baton_streams_ended", "Streams that this worker ended", "generator", "model", "status", "code"
        )
        self.used_tokens = LabeledCounter(
            "baton_usage_tokens",
            "Tokens that generators reported; input includes cached, output includes reasoning",
            "generator",
            "model",
            "type",
        )
        self.taken_over = LabeledCounter(
            "baton_runs_taken_over",
            "Runs that took a stream over, by why the run before had ended, and whether they continued its answer",
            "generator",
            "reason",
            "how",
        )
        self.failed_calls = LabeledCounter(
            "baton_model_call_failures",
            "Calls of a model that failed before their first event, and what followed: retry, fallback or fail",
            "generator",
            "model",
            "then",
            "code",
        )
        self.loop_blocked_seconds = LabeledCounter(
            "baton_loop_blocked_seconds", "Time in which a generator blocked the worker's event loop", "generator"
        )
        self.end_hook_seconds = Histogram(
            "baton_end_hook_seconds", "Duration of a run of the end hook", MILLISECONDS_TO_SECONDS
        )
        self.end_hook_failures = LabeledCounter(
            "baton_end_hook_failures",
            "Failures of the end hook, and what followed: retry, or give_up for a stream that ended without it",
            "then",
        )
        self.webhook_calls = LabeledCounter(
            "baton_webhook_calls",
            "Calls of webhooks: delivered; failed, which are repeated; or given_up",
            "result",
        )
        self.flush_seconds = Histogram(
            "baton_flush_seconds", "Duration of an append, including the commit", MILLISECONDS_TO_SECONDS
        )
        self.flush_batches = Histogram(
            "baton_flush_batches", "Streams that one append wrote to, one batch each", COUNTS
        )
        self.flush_events = Histogram("baton_flush_events", "Events that one append wrote", COUNTS)
        self.queue_seconds = LabeledHistogram(
            "baton_queue_seconds", "From a stream's creation to its first claim", SECONDS_TO_MINUTES, "generator"
        )
        self.stream_seconds = LabeledHistogram(
            "baton_stream_seconds", "From a stream's claim to its end", SECONDS_TO_MINUTES, "generator", "model"
        )
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def count_notifications(self, sent: int) -> None:
        """Count notifications that were sent."""
        self.notifications += sent

    def note_hints(self, database: str, arrive: bool | None) -> None:
        """Note whether hints of a database arrive; None if there are none."""
        self._hints[database] = arrive

    @property
    def tokens(self) -> int:
        """How many tokens the generators here have yielded."""
        return sum(part.count for part in self._tokens)

    def of_database(self, name: str, claims: Callable[[], bool]) -> TokenMetrics:
        """Return what the streams of one database are counted in.

        `claims` returns whether this worker claims streams there. The only database of an installation has no name.
        """
        self._claims[name] = claims
        self._tokens.append(TokenMetrics())
        return self._tokens[-1]

    def flushed(self, *, batches: int, events: int, size_bytes: int, seconds: float) -> None:
        """Count one append."""
        self.flush_batches.observe(batches)
        self.flush_events.observe(events)
        self.flush_seconds.observe(seconds)
        self.flushed_bytes += size_bytes

    def used(self, labels: Labels, usage: Mapping[str, float]) -> None:
        """Count the usage of one attempt."""
        for name, kind in _TOKEN_TYPES.items():
            if count := usage.get(name):
                self.used_tokens.add(*labels, kind, count=count)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics for Prometheus."""
        yield GaugeMetricFamily(
            "baton_worker_concurrency", "Streams that this worker can run at once", self.concurrency
        )
        yield GaugeMetricFamily("baton_worker_streams", "Streams being generated", self.running)
        yield self._claiming()
        yield self._listening()
        yield self._silent()
        yield CounterMetricFamily("baton_flushed_bytes", "Bytes of events appended to the log", self.flushed_bytes)
        yield CounterMetricFamily("baton_flush_failures", "Appends that failed and were repeated", self.flush_failures)
        yield CounterMetricFamily("baton_appends_fenced", "Batches rejected after another worker's claim", self.fenced)
        yield CounterMetricFamily(
            "baton_batches_appended_again",
            "Batches that a failover lost, and that were appended again",
            self.appended_again,
        )
        yield CounterMetricFamily("baton_notifications_sent", "Notifications sent", self.notifications)
        for numbers in (
            self.ended,
            self.used_tokens,
            self.taken_over,
            self.failed_calls,
            self.loop_blocked_seconds,
            self.end_hook_seconds,
            self.end_hook_failures,
            self.webhook_calls,
            self.flush_seconds,
            self.flush_batches,
            self.flush_events,
            self.queue_seconds,
            TokenMetrics.sum_of(self._tokens),
            self.stream_seconds,
        ):
            yield from numbers.collect()

    def _claiming(self) -> Metric:
        family = GaugeMetricFamily(
            "baton_worker_claiming",
            "1 while this worker claims streams; with several databases, of each",
            labels=["database"] if any(self._claims) else [],
        )
        for name, claims in self._claims.items():
            family.add_metric([name] if name else [], int(claims()))
        return family

    def _listening(self) -> Metric:
        family = GaugeMetricFamily(
            "baton_worker_listener_up",
            "1 while hints arrive; with several databases, of each",
            labels=["database"] if any(self._hints) else [],
        )
        for name, arrive in self._hints.items():
            if arrive is not None:
                family.add_metric([name] if name else [], int(arrive))
        return family

    def _silent(self) -> Metric:
        """Count the silent streams by generator; 0 for a generator whose streams are all active."""
        counts: Counter[str] = Counter()
        for generator, seconds in self.silences():
            counts[generator] += seconds >= self._silent_after_seconds
        family = GaugeMetricFamily(
            "baton_silent_streams",
            "Streams whose generator has yielded nothing for BATON_SILENT_AFTER_SECONDS",
            labels=["generator"],
        )
        for generator, count in counts.items():
            family.add_metric([generator], count)
        return family
