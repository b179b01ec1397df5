"""What a pod counts and measures of one database."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .numbers import MOST_VALUES

LABEL: Final = "database"

_GAUGES: Final = (
    ("baton_relays", "Streams that this pod follows", "relays"),
    ("baton_relay_window_bytes", "Recent events in memory", "window_bytes"),
    ("baton_listener_up", "1 while notifications arrive", "listening"),
    ("baton_pool_connections", "Connections of the pool", "pool_connections"),
    ("baton_pool_idle_connections", "Idle connections of the pool", "pool_idle"),
    (
        "baton_partitions_end_timestamp_seconds",
        "The time up to which new streams have a partition of the log",
        "partitions_end",
    ),
    (
        "baton_notify_queue_ratio",
        "How full Postgres' notification queue is, from 0 to 1; when it is full, every NOTIFY fails",
        "notify_queue_ratio",
    ),
    ("baton_open_streams", "External streams that have not ended; counted up to 10,000", "open_streams"),
    ("baton_waiting_streams", "Streams that wait for an input; counted up to 10,000", "waiting"),
    (
        "baton_oldest_snapshot_seconds",
        "How long the oldest snapshot in the database has been seen; it keeps vacuum from removing rows",
        "oldest_snapshot_seconds",
    ),
)
_COUNTERS: Final = (
    ("baton_listener_disconnects", "LISTEN connections lost", "listener_disconnects"),
    ("baton_notifications_received", "Notifications received", "notifications"),
    (
        "baton_notifications_unverified",
        "Notifications about followed streams without a valid signature; they only make the pod read the log",
        "unverified_notifications",
    ),
)
_QUEUE: Final = (
    ("baton_queued_streams", "Streams that wait for a worker, counted up to 10,000"),
    ("baton_oldest_queued_seconds", "How long the oldest queued stream has waited for a worker"),
)


@dataclass(slots=True, eq=False)
class DatabaseMetrics:
    """The numbers of one database. None: not read from the database yet.

    `queue` has, by generator, how many streams wait for a worker, and for how many seconds the first one has waited.
    """

    name: str
    relays: int = 0
    window_bytes: int = 0
    notifications: int = 0
    unverified_notifications: int = 0
    listening: bool = False
    listener_disconnects: int = 0
    pool_connections: int = 0
    pool_idle: int = 0
    partitions_end: float | None = None
    notify_queue_ratio: float | None = None
    queue: Mapping[str, tuple[int, float]] | None = None
    open_streams: int | None = None
    waiting: int | None = None
    oldest_snapshot_seconds: float | None = None


def collect(databases: Iterable[DatabaseMetrics]) -> Iterator[Metric]:
    """Yield the metrics for Prometheus. With several databases, each has the label `database`."""
    known = list(databases)
    labels = [LABEL] if any(item.name for item in known) else []
    for name, documentation, attribute in _GAUGES:
        values = [(item, attrgetter(attribute)(item)) for item in known]
        if read := [(item, value) for item, value in values if value is not None]:
            gauge = GaugeMetricFamily(name, documentation, labels=labels)
            for item, value in read:
                gauge.add_metric(_values(item, labels), float(value))
            yield gauge
    for name, documentation, attribute in _COUNTERS:
        counter = CounterMetricFamily(name, documentation, labels=labels)
        for item in known:
            counter.add_metric(_values(item, labels), attrgetter(attribute)(item))
        yield counter
    yield from _collect_queues(
        [(_values(item, labels), item.queue) for item in known if item.queue is not None], labels
    )


def _values(item: DatabaseMetrics, labels: list[str]) -> list[str]:
    return [item.name] if labels else []


def _collect_queues(
    queues: list[tuple[list[str], Mapping[str, tuple[int, float]]]], labels: list[str]
) -> Iterator[Metric]:
    """Yield the metrics of the queues: in total, and of the generators for which most streams wait."""
    if not queues:
        return
    for number, (name, documentation) in enumerate(_QUEUE):
        total = GaugeMetricFamily(name, documentation, labels=labels)
        each = GaugeMetricFamily(
            f"{name}_by_generator", f"{documentation}, by generator", labels=[*labels, "generator"]
        )
        for values, queue in queues:
            found = [numbers[number] for numbers in queue.values()]
            total.add_metric(values, sum(found) if number == 0 else max(found, default=0))
            for generator, numbers in sorted(queue.items(), key=itemgetter(1), reverse=True)[:MOST_VALUES]:
                each.add_metric([*values, generator], numbers[number])
        yield total
        yield each
