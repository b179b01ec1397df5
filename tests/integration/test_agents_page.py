"""The generators of docs/agents.md, and its requests: run by a worker, and steered through two pods."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.cluster import Cluster, RunningPod
from tests.support.logbook import until

from baton.generators import GenerationRequest, Generator
from baton.generators.protocol import Yielded

PAGE = (Path(__file__).parents[2] / "docs" / "agents.md").read_text()
INPUTS = 100


def generator_below(heading: str) -> Generator:
    code = re.findall(r"```python\n(.*?)```", PAGE.split(f"## {heading}\n")[1], re.DOTALL)[0]
    names: dict[str, Any] = {"plan": plan}
    exec(code, names)
    found: Generator = names["agent"]
    return found


async def plan(steps: Any) -> AsyncIterator[str]:
    for step in steps:
        await asyncio.sleep(0)
        yield step


async def send(cluster: Cluster, pod: RunningPod, stream: str, data: Any, key: str) -> int:
    url = f"{pod.url}/v1/streams/{stream}/inputs"
    answer = await cluster.client.post(url, json={"data": data}, headers={"idempotency-key": key})
    assert answer.is_success, answer.text
    number: int = answer.json()["number"]
    return number


async def state_of(cluster: Cluster, pod: RunningPod, stream: str) -> Any:
    return (await cluster.client.get(f"{pod.url}/v1/streams/{stream}")).json()


async def until_status(cluster: Cluster, pod: RunningPod, stream: str, status: str) -> Any:
    async def has() -> bool:
        return bool((await state_of(cluster, pod, stream))["status"] == status)

    await until(has)
    return await state_of(cluster, pod, stream)


@pytest.mark.parametrize(
    ("approved", "end"),
    [(True, "\nDeleted."), (False, "\nKept."), (None, "\nNobody answered, so nothing was deleted.")],
)
async def test_the_agent_that_asks_for_approval_waits_and_continues(
    cluster: Cluster, approved: bool | None, end: str
) -> None:
    agent = generator_below("Wait for people")
    pods = [await cluster.pod() for _ in range(2)]
    first = await cluster.worker({"replay": agent})
    stream = await cluster.create(pods[0])
    shown = await until_status(cluster, pods[1], stream, "waiting")
    assert shown["waiting"]["for"] == {"type": "approval", "calls": ["call_1"]}
    # No process of the first run is needed any more.
    await cluster.kill(first)
    if approved is None:
        await cluster.pool.execute("UPDATE baton.stream SET held_until = clock_timestamp()")
    else:
        data = {"type": "approval", "call_id": "call_1", "approved": approved, "reason": None}
        assert [await send(cluster, pod, stream, data, "call_1") for pod in pods] == [1, 1]
    await cluster.worker({"replay": agent})
    shown = await until_status(cluster, pods[0], stream, "completed")
    assert shown["text"] == f"I would like to delete three backups.{end}"
    assert (shown["run"], shown["waiting"]) == (2, None)


async def test_the_agent_that_is_corrected_notes_it(cluster: Cluster) -> None:
    agent = generator_below("Receive inputs")
    pod = await cluster.pod()
    stream = await cluster.create(pod, input=["One.", " Two."])
    await send(cluster, pod, stream, "Use euros.", "k")
    await cluster.worker({"replay": agent})
    assert (await until_status(cluster, pod, stream, "completed"))["text"] == "One.\nNoted: Use euros.\n Two."


class Counting:
    """Receives inputs one after another, and writes their numbers."""

    continues = True

    async def __call__(self, request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        for _ in range(INPUTS):
            yield f"{await request.receive()} "


async def test_a_running_stream_gets_inputs_of_two_pods_in_their_order(cluster: Cluster) -> None:
    pods = [await cluster.pod() for _ in range(2)]
    await cluster.worker({"replay": Counting()})
    stream = await cluster.create(pods[0])
    await until_status(cluster, pods[0], stream, "running")
    numbers: dict[int, int] = {}

    async def client(pod: RunningPod, own: range) -> None:
        for data in own:
            numbers[await send(cluster, pod, stream, data, f"key-{data}")] = data

    # Four clients send at once; each of them in its own order.
    await asyncio.gather(*(client(pods[part % 2], range(part, INPUTS, 4)) for part in range(4)))
    shown = await until_status(cluster, pods[1], stream, "completed")
    assert list(map(int, shown["text"].split())) == [numbers[number] for number in range(1, INPUTS + 1)]
    for part in range(4):
        assert [data for _, data in sorted(numbers.items()) if data % 4 == part] == list(range(part, INPUTS, 4))
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.input") == 0
