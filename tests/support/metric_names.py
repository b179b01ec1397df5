"""The names of the metrics of pods and workers in Prometheus."""

from __future__ import annotations

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from baton.observability.metrics import PodMetrics, WorkerMetrics
from baton.processes.families import rendered, states

SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def metric_names() -> set[str]:
    """Return all names, with the suffixes that Prometheus adds."""
    pod = PodMetrics()
    database = pod.of_database("")
    database.partitions_end = database.notify_queue_ratio = 0.0
    database.oldest_snapshot_seconds = 0.0
    database.open_streams = database.waiting = 0
    database.queue = {"test": (1, 0.5)}
    texts = [generate_latest(metrics.registry) for metrics in (pod, WorkerMetrics())]
    texts.append(rendered(states({0: True}, {0: 0})))
    return {
        family.name + suffix
        for text in texts
        for family in text_string_to_metric_families(text.decode())
        for suffix in SUFFIXES[family.type]
    }
