"""The metrics of several processes as one exposition: each sample gets the label `process`, the number of its process.

So every process has time series of its own, as every pod and worker has. Adding them up is left to queries: some are
gauges that all pods read from the database, whose sum means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# What one process sends of one registry: name, documentation and type of each metric, with its samples.
Families: TypeAlias = list[tuple[str, str, str, list[tuple[str, dict[str, str], float]]]]

LABEL: Final = "process"


def collected(registry: CollectorRegistry) -> Families:
    """Return the metrics of a registry, in a form for JSON."""
    return [
        (family.name, family.documentation, family.type, [sample[:3] for sample in family.samples])
        for family in registry.collect()
    ]


def merged(answers: Mapping[int, Families]) -> list[Metric]:
    """Return the metrics of these processes. All samples of a metric belong together in Prometheus' format."""
    families: dict[str, Metric] = {}
    for number, answer in sorted(answers.items()):
        for name, documentation, kind, samples in answer:
            family = families.setdefault(name, Metric(name, documentation, kind))
            for sample, labels, value in samples:
                family.add_sample(sample, {LABEL: str(number), **labels}, value)
    return list(families.values())


def states(up: Mapping[int, bool], replaced: Mapping[int, int]) -> list[Metric]:
    """Return what the parent knows of its children: whether each answered, and how often it was replaced."""
    answering = GaugeMetricFamily(
        "baton_process_up", "Whether a process of this command answered for these metrics", labels=[LABEL]
    )
    replacements = CounterMetricFamily(
        "baton_process_replacements", "Processes of this command that ended unasked and were replaced", labels=[LABEL]
    )
    for number, answered in sorted(up.items()):
        answering.add_metric([str(number)], answered)
        replacements.add_metric([str(number)], replaced[number])
    return [answering, replacements]


def rendered(families: Sequence[Metric]) -> bytes:
    """Return metrics in Prometheus' text format."""
    return generate_latest(registry_of(lambda: families))


def registry_of(collect: Callable[[], Iterable[Metric]]) -> CollectorRegistry:
    """Return a registry whose metrics this function returns, each time that Prometheus scrapes."""

    class _Collector(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from collect()

    registry = CollectorRegistry()
    registry.register(_Collector())
    return registry
