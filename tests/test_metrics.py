"""What pods and workers count: that it is true, and as Prometheus wants it."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tests.cluster import Cluster
from tests.logbook import until

from baton.errors import ConfigurationError, GenerationError
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded
from baton.generators.requested_model import RequestedModel, asked_by
from baton.observability.metrics import Names, PodMetrics, WorkerMetrics
from baton.observability.metrics.exposition import exposed
from baton.observability.metrics.numbers import MOST_VALUES, Histogram, LabeledCounter


async def three_words(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    for word in ("one ", "two ", "three"):
        yield word


async def failing(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    yield "half"
    raise GenerationError("provider_timeout", "The model provider did not answer in time.")


def test_a_histogram_counts_into_buckets_that_include_their_bound() -> None:
    histogram = Histogram("sizes", "Sizes", (1.0, 10.0))
    for value in (0.5, 1.0, 2.0, 11.0):
        histogram.observe(value)
    (family,) = histogram.collect()
    found = {sample.labels.get("le", sample.name): sample.value for sample in family.samples}
    assert found == {"1.0": 2, "10.0": 3, "+Inf": 4, "sizes_count": 4, "sizes_sum": 14.5}


def test_labels_have_few_values_whatever_is_counted() -> None:
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


async def test_what_a_worker_and_a_pod_did_is_counted(cluster: Cluster) -> None:
    worker = await cluster.worker({"three_words": three_words, "failing": failing})
    pod = await cluster.pod()
    stream_id = await cluster.create(pod, generator="three_words")
    events = f"{pod.url}/v1/streams/{stream_id}/events"
    whole = await cluster.client.get(events)
    assert whole.text.count("data: ") == 4
    resumed = await cluster.client.get(events, headers={"Last-Event-ID": "2"})
    assert resumed.text.count("data: ") == 2
    failed = await cluster.create(pod, generator="failing")
    await cluster.client.get(f"{pod.url}/v1/streams/{failed}?wait=10")

    def of_worker(name: str, **labels: str) -> float | None:
        return worker.metrics.registry.get_sample_value(name, labels)

    await until(lambda: of_worker("baton_worker_streams") == 0)
    assert of_worker("baton_worker_concurrency") == worker._settings.worker_concurrency
    whole_ones, failed_ones = ({"generator": name, "model": ""} for name in ("three_words", "failing"))
    assert of_worker("baton_streams_ended_total", **whole_ones, status="completed", code="stop") == 1
    assert of_worker("baton_streams_ended_total", **failed_ones, status="failed", code="provider_timeout") == 1
    assert of_worker("baton_time_to_first_token_seconds_count", **whole_ones) == 1
    assert of_worker("baton_time_to_first_token_seconds_count", **failed_ones) == 1
    assert of_worker("baton_stream_seconds_count", **failed_ones) == 1
    assert of_worker("baton_inter_token_seconds_count") == 2
    assert of_worker("baton_queue_seconds_count", generator="failing") == 1
    assert worker.metrics.tokens == 4
    assert of_worker("baton_flush_events_sum") == 6
    assert of_worker("baton_flush_seconds_count") == of_worker("baton_flush_batches_count")

    await until(lambda: pod.metric("baton_event_streams", dialect="native.full") == 0)
    assert pod.metric("baton_events_sent_total", dialect="native.full") == 6
    assert pod.metric("baton_sent_bytes_total", dialect="native.full") > 100
    assert pod.metric("baton_event_streams_closed_total", dialect="native.full", reason="ended") == 2
    assert pod.metric("baton_resumed_events_count") == 1
    assert pod.metric("baton_resumed_events_sum") == 2


class Asking:
    """A generator that asks a model, and says what it used; then it waits."""

    def __init__(self) -> None:
        self.asked = 0

    def requested_model(self, given: Any) -> RequestedModel:
        return RequestedModel(given["model"], "openai")

    async def __call__(self, _request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        self.asked += 1
        yield {"type": "usage", "input_tokens": 3, "output_tokens": 4, "cached_tokens": 1, "total_tokens": 7}


async def test_a_worker_goes_on_where_a_generator_cannot_say_which_model_it_asks(cluster: Cluster) -> None:
    """An input that `requested_model` did not expect is one client's: it is not to end the streams of all others."""
    await cluster.worker({"ask": Asking()})
    pod = await cluster.pod()
    for _ in range(2):
        stream_id = await cluster.create(pod, generator="ask", input="no object")
        answer = await cluster.client.get(f"{pod.url}/v1/streams/{stream_id}?wait=10")
        assert answer.json()["status"] == "completed"


@pytest.mark.parametrize(
    ("model", "found"),
    [("gpt-5", "gpt-5"), ("m" * 1_000_000, "m" * 256), (["gpt-5"], None), ("\ud83d", "\ufffd"), (None, None)],
    ids=["known", "long", "list", "half", "none"],
)
def test_the_model_that_is_asked_fits_a_line_of_the_log(model: Any, found: str | None) -> None:
    assert asked_by(Asking(), {"model": model}) == RequestedModel(found, "openai")


async def test_labels_have_the_models_that_the_settings_name_and_no_other(cluster: Cluster) -> None:
    asking = Asking()
    worker = await cluster.worker({"ask": asking}, openai_model="gpt-5")
    pod = await cluster.pod()
    for model in ("gpt-5", "mine", "also mine"):
        stream_id = await cluster.create(pod, generator="ask", input={"model": model})
        await cluster.client.get(f"{pod.url}/v1/streams/{stream_id}?wait=10")
    await until(lambda: worker.metrics.running == 0)

    def used(model: str, kind: str) -> float | None:
        labels = {"generator": "ask", "model": model, "type": kind}
        return worker.metrics.registry.get_sample_value("baton_usage_tokens_total", labels)

    assert (used("gpt-5", "input"), used("gpt-5", "output"), used("gpt-5", "cached")) == (3, 4, 1)
    assert (used("other", "input"), used("other", "output")) == (6, 8)
    assert used("mine", "input") is None
    labels = {"generator": "ask", "model": "other", "status": "completed", "code": "stop"}
    assert worker.metrics.registry.get_sample_value("baton_streams_ended_total", labels) == 2


def test_a_generator_that_is_not_here_is_another() -> None:
    names = Names({"mine"}, {"gpt-5"})
    assert names.labels("mine", "gpt-5") == ("mine", "gpt-5")
    assert names.labels("theirs") == ("other", "")
    assert names.labels("mine", "theirs") == ("mine", "other")


def test_silent_streams_are_counted_when_prometheus_asks() -> None:
    metrics = WorkerMetrics(8, silent_after_seconds=30)
    metrics.silences = lambda: [("a", 29.9), ("a", 30.0), ("a", 100.0), ("b", 0.0)]
    silent = {name: metrics.registry.get_sample_value("baton_silent_streams", {"generator": name}) for name in "ab"}
    assert silent == {"a": 2, "b": 0}


async def test_the_delay_of_what_is_live_is_measured_and_of_what_is_replayed_is_not(cluster: Cluster) -> None:
    pod = await cluster.pod()
    author = await cluster.author()
    url = f"{pod.url}/v1/streams/{author.id}/events"
    await author.write(b'{"type":"text","delta":"before"}')
    async with cluster.client.stream("GET", url) as answer:
        lines = answer.aiter_lines()
        while "before" not in await anext(lines):
            pass
        # It waits for more from now on.
        await until(
            lambda: any(item.waiting for relay in pod.pod.relays._relays.values() for item in relay.subscribers)
        )
        assert pod.metric("baton_delivery_seconds_count") == 0
        await author.write(b'{"type":"text","delta":"after"}', end=True)
        while "after" not in await anext(lines):
            pass
    await until(lambda: pod.metric("baton_delivery_seconds_count") == 1)
    assert pod.metric("baton_notification_seconds_count") >= 1


async def test_a_pod_looks_at_the_queues(cluster: Cluster) -> None:
    await cluster.pool.execute(
        "INSERT INTO baton.stream (generator, input, on_worker_lost, created_at, queued_at) "
        "SELECT 'nobody', 'null', 'fail', now() - interval '1 minute', now() - interval '1 minute' "
        "FROM generate_series(1, 3)"
    )
    pod = await cluster.pod()
    await until(lambda: pod.pod.metrics.oldest_snapshot_seconds is not None)
    assert pod.metric("baton_queued_streams") == 3
    assert 60 <= pod.metric("baton_oldest_queued_seconds") < 600
    assert 0 <= pod.metric("baton_notify_queue_ratio") <= 1
    assert pod.metric("baton_oldest_snapshot_seconds") >= 0
    assert pod.metric("baton_pool_connections") >= 1
    assert pod.metric("baton_pool_wait_seconds_count") >= 1


def test_a_worker_serves_its_metrics_where_it_is_told_to() -> None:
    metrics = WorkerMetrics(7)
    with exposed(metrics, "127.0.0.1", None) as url:
        assert url is None
    with exposed(metrics, "127.0.0.1", 0) as url:
        assert url is not None
        with urllib.request.urlopen(url) as answer:
            assert b"baton_worker_concurrency 7.0" in answer.read()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url)


def test_an_address_that_cannot_be_had_is_told() -> None:
    with (
        pytest.raises(ConfigurationError, match=r"BATON_WORKER_METRICS_PORT: cannot listen on 203\.0\.113\.1:9"),
        exposed(WorkerMetrics(), "203.0.113.1", 9),
    ):
        pass
