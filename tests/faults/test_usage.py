"""What a stream has used, when workers die: the sum is in its end and its row, whichever process wrote them."""

from __future__ import annotations

from uuid import UUID

from tests.faults.test_leases import log_of, mortal, row
from tests.faults.viewers import Viewer
from tests.faults.worker_processes import QUICK
from tests.support.cluster import Cluster, Tap
from tests.support.logbook import until

FIRST = {"type": "usage", "input_tokens": 10, "output_tokens": 1, "total_tokens": 11}
SECOND = {"type": "usage", "input_tokens": 20, "output_tokens": 2, "total_tokens": 22, "vendor_credits": 3}
SUM = {"input_tokens": 30, "output_tokens": 3, "total_tokens": 33, "vendor_credits": 3}


async def _epoch(cluster: Cluster, stream_id: str) -> int:
    return (await row(cluster, stream_id)).epoch


async def test_a_second_attempt_adds_to_the_usage_of_the_first(cluster: Cluster) -> None:
    pod, first, second = await cluster.pod(), Tap(), Tap()
    async with mortal(cluster, first):
        stream_id = await cluster.create(pod, on_worker_lost="retry")
        viewer = Viewer(cluster.client, pod.url, stream_id)
        first.let("lost ", FIRST)
        await viewer.has(2)
    await cluster.worker({"replay": second}, **QUICK)
    second.let("whole", SECOND)
    await until(lambda: any(event.get("delta") == "whole" for event in viewer.events))
    shown = (await cluster.client.get(f"{pod.url}/v1/streams/{stream_id}")).json()
    second.end()
    done = await viewer.end()
    by_attempt = [
        {"epoch": 1, "usage": {name: FIRST[name] for name in FIRST if name != "type"}},
        {"epoch": 3, "usage": {name: SECOND[name] for name in SECOND if name != "type"}},
    ]
    assert done["usage"] == SUM
    assert done["usage_by_attempt"] == by_attempt
    # What bills may read after the log is gone: the row alone.
    await cluster.pool.execute("DELETE FROM baton.batch WHERE stream_id = $1", UUID(stream_id))
    stream = await row(cluster, stream_id)
    assert (stream.usage, stream.usage_by_attempt) == (SUM, by_attempt)
    (listed,) = (await cluster.client.get(f"{pod.url}/v1/streams")).json()["data"]
    assert (listed["usage"], listed["usage_by_attempt"]) == (SUM, by_attempt)
    assert shown["usage"]["total_tokens"] in {11, 33}  # it was under way


async def test_a_stream_that_ends_without_its_worker_keeps_its_usage(cluster: Cluster) -> None:
    """By the next worker, as lost; and by a pod, while it waits to be tried again."""
    pod, tap = await cluster.pod(), Tap()
    used = {name: FIRST[name] for name in FIRST if name != "type"}
    async with mortal(cluster, tap):
        lost = await cluster.create(pod, on_worker_lost="fail")
        viewer = Viewer(cluster.client, pod.url, lost)
        tap.let("half ", FIRST)
        await viewer.has(2)
    await cluster.worker({"other": Tap()}, **QUICK)
    assert (await viewer.end())["usage"] == used
    assert (await row(cluster, lost)).usage == used

    tap = Tap()
    async with mortal(cluster, tap):
        waiting = await cluster.create(pod, on_worker_lost="retry")
        viewer = Viewer(cluster.client, pod.url, waiting)
        tap.let("half ", FIRST)
        await viewer.has(2)

    async def queued() -> bool:
        return (await row(cluster, waiting)).status == "queued"

    await until(queued)
    await cluster.client.post(f"{pod.url}/v1/streams/{waiting}/cancel")
    assert (await viewer.end())["usage"] == used
    assert (await row(cluster, waiting)).usage == used
    assert [event["type"] for event in await log_of(cluster, waiting)] == ["text", "usage", "done"]
