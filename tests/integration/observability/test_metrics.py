"""What pods and workers count: that it is true."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from tests.support.asking import Asking
from tests.support.cluster import Cluster
from tests.support.logbook import until

from baton.errors import GenerationError
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded


async def three_words(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    for word in ("one ", "two ", "three"):
        yield word


async def failing(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    yield "half"
    raise GenerationError("provider_timeout", "The model provider did not answer in time.")


async def test_the_work_of_a_worker_and_a_pod_is_counted(cluster: Cluster) -> None:
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


async def test_a_worker_continues_if_a_generator_cannot_name_its_model(cluster: Cluster) -> None:
    """An input that `requested_model` did not expect is one client's: it is not to end the streams of all others."""
    await cluster.worker({"ask": Asking()})
    pod = await cluster.pod()
    for _ in range(2):
        stream_id = await cluster.create(pod, generator="ask", input="no object")
        answer = await cluster.client.get(f"{pod.url}/v1/streams/{stream_id}?wait=10")
        assert answer.json()["status"] == "completed"


async def test_labels_have_only_the_models_of_the_settings(cluster: Cluster) -> None:
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


async def test_delay_is_measured_for_live_events_and_not_for_replayed_ones(cluster: Cluster) -> None:
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
            lambda: any(item.waiting for relay in pod.shard.relays._relays.values() for item in relay.subscribers)
        )
        assert pod.metric("baton_delivery_seconds_count") == 0
        await author.write(b'{"type":"text","delta":"after"}', end=True)
        while "after" not in await anext(lines):
            pass
    await until(lambda: pod.metric("baton_delivery_seconds_count") == 1)
    assert pod.metric("baton_notification_seconds_count") >= 1


async def test_a_pod_reports_the_queues(cluster: Cluster) -> None:
    await cluster.pool.execute(
        "INSERT INTO baton.stream (generator, input, on_worker_lost, created_at, queued_at) "
        "SELECT 'nobody', 'null', 'fail', now() - interval '1 minute', now() - interval '1 minute' "
        "FROM generate_series(1, 3)"
    )
    pod = await cluster.pod()
    await until(lambda: pod.shard.metrics.oldest_snapshot_seconds is not None)
    assert pod.metric("baton_queued_streams") == 3
    assert 60 <= pod.metric("baton_oldest_queued_seconds") < 600
    assert 0 <= pod.metric("baton_notify_queue_ratio") <= 1
    assert pod.metric("baton_oldest_snapshot_seconds") >= 0
    assert pod.metric("baton_pool_connections") >= 1
    assert pod.metric("baton_pool_wait_seconds_count") >= 1
