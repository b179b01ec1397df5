"""Metrics by themselves: names, labels and buckets, and the address that serves them."""

from __future__ import annotations

import re
import urllib.request
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tests.support.asking import Asking

from baton.errors import ConfigurationError
from baton.generators.requested_model import RequestedModel, asked_by
from baton.observability.metrics import Names, PodMetrics, WorkerMetrics
from baton.observability.metrics.exposition import exposed
from baton.observability.metrics.numbers import MOST_VALUES, Histogram, LabeledCounter


def test_a_histogram_counts_into_buckets_that_include_their_bound() -> None:
    histogram = Histogram("sizes", "Sizes", (1.0, 10.0))
    for value in (0.5, 1.0, 2.0, 11.0):
        histogram.observe(value)
    (family,) = histogram.collect()
    found = {sample.labels.get("le", sample.name): sample.value for sample in family.samples}
    assert found == {"1.0": 2, "10.0": 3, "+Inf": 4, "sizes_count": 4, "sizes_sum": 14.5}


def test_labels_have_few_values() -> None:
    counter = LabeledCounter("ends", "Ends", "status", "code")
    for number in range(MOST_VALUES + 10):
        counter.add("failed", f"code_{number}")
    counter.add("failed", "code_0")
    (family,) = counter.collect()
    found = {sample.labels["code"]: sample.value for sample in family.samples}
    assert len(found) == MOST_VALUES + 1
    assert found["code_0"] == 2
    assert found["other"] == 10


@pytest.mark.parametrize("metrics", [PodMetrics(), WorkerMetrics(8)])
def test_names_follow_prometheus_conventions(metrics: PodMetrics | WorkerMetrics) -> None:
    families = list(text_string_to_metric_families(generate_latest(metrics.registry).decode()))
    assert len(families) > 10
    for family in families:
        assert re.fullmatch(r"baton_[a-z_]+", family.name)
        assert family.documentation
        # Base units, and none in disguise.
        assert not re.search(r"milli|micro|_ms\b|_kb|minutes|hours|percent", family.name)
    names = [family.name for family in families]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("model", "found"),
    [("gpt-5", "gpt-5"), ("m" * 1_000_000, "m" * 256), (["gpt-5"], None), ("\ud83d", "\ufffd"), (None, None)],
    ids=["known", "long", "list", "half", "none"],
)
def test_the_requested_model_fits_a_log_line(model: Any, found: str | None) -> None:
    assert asked_by(Asking(), {"model": model}) == RequestedModel(found, "openai")


def test_an_unknown_generator_is_labeled_other() -> None:
    names = Names({"mine"}, {"gpt-5"})
    assert names.labels("mine", "gpt-5") == ("mine", "gpt-5")
    assert names.labels("theirs") == ("other", "")
    assert names.labels("mine", "theirs") == ("mine", "other")


def test_silent_streams_are_counted_when_prometheus_asks() -> None:
    metrics = WorkerMetrics(8, silent_after_seconds=30)
    metrics.silences = lambda: [("a", 29.9), ("a", 30.0), ("a", 100.0), ("b", 0.0)]
    silent = {name: metrics.registry.get_sample_value("baton_silent_streams", {"generator": name}) for name in "ab"}
    assert silent == {"a": 2, "b": 0}


def test_a_worker_serves_its_metrics_at_the_configured_address() -> None:
    metrics = WorkerMetrics(7)
    with exposed(metrics.registry, "127.0.0.1", None) as url:
        assert url is None
    with exposed(metrics.registry, "127.0.0.1", 0) as url:
        assert url is not None
        with urllib.request.urlopen(url) as answer:
            assert b"baton_worker_concurrency 7.0" in answer.read()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url)


def test_an_unavailable_address_is_reported() -> None:
    with (
        pytest.raises(ConfigurationError, match=r"BATON_WORKER_METRICS_PORT: cannot listen on 203\.0\.113\.1:9"),
        exposed(WorkerMetrics().registry, "203.0.113.1", 9),
    ):
        pass
