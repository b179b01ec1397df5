"""Streams that wait for people while what they wait in dies: every process, Postgres, workers at random moments."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from itertools import cycle
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import orjson
import pytest
from tests.faults import agents
from tests.faults.agents import ENDS, QUESTION
from tests.faults.deployment import Deployment
from tests.faults.servers import BreakablePostgres
from tests.faults.worker_processes import QUICK, worker_process
from tests.support.access import TOKEN_KEYS, make_key
from tests.support.cluster import Cluster, RunningPod
from tests.support.logbook import connected, events, until

import baton
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded
from baton.generators.threaded import Threaded

APPROVAL = {"type": "approval", "call_id": "c", "approved": True, "reason": None}
KINDS = ["text", "tool_call", "tool_approval", "waiting", "resumed", "tool_result", "text", "done"]
ENDED = ("completed", "failed", "cancelled")


class Native:
    """A program that uses Baton's Python client: it creates, follows through one pod, and sends inputs to another."""

    generator = "approving"

    def __init__(self, http: httpx2.AsyncClient, urls: list[str], key: str) -> None:
        self._clients = [baton.Client(url, token=key, http=http) for url in urls]
        self.events: list[dict[str, Any]] = []

    async def create(self, given: dict[str, Any]) -> UUID:
        self._stream = await self._clients[0].create(given, generator=self.generator)
        self._following = asyncio.create_task(self._follow())
        return self._stream.id

    async def _follow(self) -> None:
        async with contextlib.aclosing(self._clients[0].follow(self._stream)) as received:
            async for item in received:
                assert item.seq == len(self.events) + 1, "an event is missing, repeated or out of order"
                self.events.append(item.event)

    async def asked(self) -> None:
        """Wait until it has seen that the stream waits."""
        await until(lambda: [event["type"] for event in self.events][-1:] == ["waiting"])

    async def cut(self) -> None:
        """Every process has died. It notices by itself."""

    async def answer(self) -> None:
        numbers = [await client.send_input(self._stream, APPROVAL, idempotency_key="c") for client in self._clients]
        assert set(numbers) == {1}

    async def rest(self) -> list[dict[str, Any]]:
        await self._following
        return self.events


class Curl:
    """A person with curl and a signed token, which shows only the answer; a script with an API key approves."""

    generator = "approving_plainly"

    def __init__(self, urls: list[str], key: str, folder: Path) -> None:
        self._urls = [f"{url}/v1/streams" for url in urls]
        self._key = f"Authorization: Bearer {key}"
        self._folder = folder
        self._parts = 0

    async def _curl(self, url: str, *arguments: str) -> Any:
        process = await self._started(url, *arguments)
        output, _ = await process.communicate()
        assert process.returncode == 0, output
        return orjson.loads(output)

    async def _started(self, url: str, *arguments: str, **given: Any) -> asyncio.subprocess.Process:
        command = ("curl", "-sSN", "--noproxy", "*", url, *arguments)
        return await asyncio.create_subprocess_exec(*command, **{"stdout": asyncio.subprocess.PIPE} | given)

    async def _follow(self, url: str, *arguments: str) -> asyncio.subprocess.Process:
        """Write the events to a file of their own."""
        self._parts += 1
        with (self._folder / f"part-{self._parts}").open("wb") as part:
            return await self._started(f"{url}/{self._id}/events", "-H", self._key, *arguments, stdout=part)

    def _received(self) -> list[dict[str, Any]]:
        """All whole events, of all connections."""
        parts = [(self._folder / f"part-{number}").read_bytes() for number in range(1, self._parts + 1)]
        blocks = [block for part in parts for block in part.split(b"\n\n")[:-1] if block.startswith(b"id: ")]
        found = [block.removeprefix(b"id: ").split(b"\ndata: ") for block in blocks]
        assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
        return [orjson.loads(data) for _, data in found]

    async def create(self, given: dict[str, Any]) -> UUID:
        token = {"scopes": ["read", "input"], "view": "answer"}
        body = orjson.dumps({"input": given, "generator": self.generator, "token": token}).decode()
        created = await self._curl(self._urls[0], "-H", self._key, "-d", body)
        self._id, self._token = created["id"], f"Authorization: Bearer {created['token']}"
        self._following = await self._follow(self._urls[0])
        return UUID(self._id)

    async def asked(self) -> None:
        async def waits() -> bool:
            shown = await self._curl(f"{self._urls[1]}/{self._id}", "-H", self._key)
            return bool(shown["status"] == "waiting" and shown["waiting"]["for"] == agents.REASON)

        await until(waits)
        await until(lambda: len(self._received()) == 4)
        narrow = await self._curl(f"{self._urls[1]}/{self._id}", "-H", self._token)
        assert (narrow["status"], narrow["text"], narrow.get("waiting")) == ("waiting", QUESTION, None)

    async def cut(self) -> None:
        """Every process has died: so did the connection."""
        assert await self._following.wait() != 0

    async def answer(self) -> None:
        after = str(len(self._received()))
        self._following = await self._follow(self._urls[1], "-H", f"Last-Event-ID: {after}")
        body = orjson.dumps({"data": APPROVAL}).decode()
        for url in self._urls:
            sent = await self._curl(f"{url}/{self._id}/inputs", "-H", self._key, "-H", "Idempotency-Key: c", "-d", body)
            assert sent["number"] == 1

    async def rest(self) -> list[dict[str, Any]]:
        assert await self._following.wait() == 0
        accept = ("-H", "Accept: text/plain", "-H", self._token)
        process = await self._started(f"{self._urls[0]}/{self._id}/events", *accept)
        assert (await process.communicate())[0].decode() == QUESTION + ENDS[True]
        return self._received()


async def one_more(http: httpx2.AsyncClient, url: str, key: str) -> None:
    """Run another stream to its end, in the only slot."""
    async with baton.Client(url, token=key, http=http) as client:
        assert await client.text(await client.create(None, generator="quick")) == "Yes."


@contextlib.asynccontextmanager
async def calls_in(folder: Path) -> AsyncIterator[Path]:
    """A file in which the tools count. Each must have run once for each stream."""
    calls = folder / "calls"
    calls.touch()
    yield calls
    assert [count for _, count in Counter(calls.read_text().split()).most_common(1)] == [1]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
async def test_an_approval_outlives_every_process_and_a_crash_of_postgres(
    breakable: BreakablePostgres, breakable_cluster: Cluster, tmp_path: Path
) -> None:
    """There is one slot, in which other streams run meanwhile."""
    cluster = breakable_cluster
    _, key = await make_key(cluster)
    names = ("approving", "approving_plainly", "quick")
    settings: dict[str, Any] = {"worker_concurrency": 1, "token_keys": TOKEN_KEYS}
    async with calls_in(tmp_path) as calls, Deployment(cluster.dsn, *names, **settings) as deployment:
        native, curl = Native(cluster.client, deployment.urls, key), Curl(deployment.urls, key, tmp_path)
        users: list[Native | Curl] = [native, curl]
        ids = [await user.create({"calls": str(calls)}) for user in users]
        for user in users:
            await user.asked()
        await one_more(cluster.client, deployment.urls[0], key)
        await deployment.kill()
        await breakable.crash()
        for user in users:
            await user.cut()
        await deployment.start()
        await one_more(cluster.client, deployment.urls[1], key)
        assert calls.read_text() == ""
        for user in users:
            await user.answer()
        for user, stream_id in zip(users, ids, strict=True):
            found = await user.rest()
            assert [event["type"] for event in found] == KINDS
            assert (found[4]["reason"], found[-2]["delta"]) == ("input", ENDS[True])
            async with connected(cluster.dsn) as connection:
                assert found == await events(connection, stream_id)
                assert await connection.fetchval("SELECT count(*) FROM baton.input") == 0


@pytest.mark.slow
async def test_an_approval_outlives_the_only_process_and_a_crash_of_postgres(
    breakable: BreakablePostgres, breakable_cluster: Cluster, tmp_path: Path
) -> None:
    """The short form: a pod with a worker in it."""
    cluster = breakable_cluster
    _, key = await make_key(cluster)
    async with calls_in(tmp_path) as calls, Deployment(cluster.dsn, "approving", alone=True) as deployment:
        user = Native(cluster.client, deployment.urls, key)
        await user.create({"calls": str(calls)})
        await user.asked()
        await deployment.kill()
        await breakable.crash()
        await deployment.start()
        await user.answer()
        found = await user.rest()
    assert [event["type"] for event in found] == KINDS


class Person:
    """Follows a stream through one pod, and approves through the other at the first event of a type."""

    def __init__(self, cluster: Cluster, pods: list[RunningPod], moment: str) -> None:
        self._reads, self._writes = (baton.Client(pod.url, http=cluster.client) for pod in pods)
        self._moment = moment

    async def ask(self, given: dict[str, Any], generator: str) -> None:
        stream = await self._reads.create(given, generator=generator)
        seqs, answered = [], False
        async with contextlib.aclosing(self._reads.follow(stream)) as received:
            async for item in received:
                seqs.append(item.seq)
                if item.event["type"] == self._moment and not answered:
                    answered = await self._writes.send_input(stream, APPROVAL, idempotency_key="c") == 1
        assert seqs == list(range(1, len(seqs) + 1))
        ended = await self._reads.get(stream)
        assert (ended.status, ended.text) == ("completed", QUESTION + ENDS[True]), ended


@pytest.mark.parametrize(
    ("rounds", "seed"), [(1, 1), pytest.param(30, 21, marks=[pytest.mark.slow, pytest.mark.timeout(400)])]
)
async def test_nothing_is_stuck_if_workers_die_as_inputs_come(
    cluster: Cluster, tmp_path: Path, rounds: int, seed: int
) -> None:
    """Workers are killed at random moments around questions, inputs and waits. A round fails with its seed."""
    chance = random.Random(seed)
    names = ("approving", "approving_plainly")
    pods = [await cluster.pod(generators=dict.fromkeys(names, "no:where")) for _ in range(2)]
    settings = QUICK | {"generators": ",".join(f"{name}=agents:{name}" for name in names), "max_attempts": 100}
    stop_at = asyncio.get_running_loop().time() + 120
    async with asyncio.TaskGroup() as people:
        for _ in range(rounds):
            async with worker_process(cluster.dsn, **settings) as worker:
                for generator, moment in zip(cycle(names), 2 * ("text", "tool_approval", "waiting"), strict=False):
                    given = {"calls": str(tmp_path / "calls"), "pause": chance.choice([0, 0.05, 0.3])}
                    people.create_task(Person(cluster, pods, moment).ask(given, generator))
                await asyncio.sleep(chance.uniform(0, 0.6))
                worker.signal(signal.SIGKILL)
                await worker.ends()
            if asyncio.get_running_loop().time() > stop_at:
                break
        both: dict[str, Any] = {"approving": agents.approving, "approving_plainly": Threaded(agents.approving_plainly)}
        await cluster.worker(both, **QUICK)
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.input") == 0


async def until_waiting(cluster: Cluster, count: int) -> None:
    async def all_wait() -> bool:
        return bool(await cluster.pool.fetchval("SELECT count(*) FROM baton.stream WHERE status = 'waiting'") == count)

    await until(all_wait)


async def until_ended(cluster: Cluster, ids: list[str]) -> list[tuple[str, str | None]]:
    """Wait for the ends of all; return how each ended."""

    async def have_ended() -> bool:
        query = "SELECT count(*) FROM baton.stream WHERE status = ANY ($1)"
        return bool(await cluster.pool.fetchval(query, ENDED) == len(ids))

    await until(have_ended)
    query = "SELECT status, error_code FROM baton.stream WHERE id = $1"
    rows = [await cluster.pool.fetchrow(query, UUID(stream_id)) for stream_id in ids]
    return [(row[0], row[1]) for row in rows if row is not None]


async def test_a_deadline_that_passes_while_no_worker_lives_is_kept_by_the_next(
    cluster: Cluster, tmp_path: Path
) -> None:
    pod = await cluster.pod()
    first = await cluster.worker({"replay": agents.approving}, max_wait_seconds=0.5)
    given = {"calls": str(tmp_path / "calls")}
    ids = [await cluster.create(pod, input=given | more) for more in ({"until": 0.4}, {})]
    await until_waiting(cluster, 2)
    await cluster.kill(first)

    async def are_over() -> bool:
        query = "SELECT bool_and(wait_until < clock_timestamp()) FROM baton.stream"
        return bool(await cluster.pool.fetchval(query))

    await until(are_over)
    await until_waiting(cluster, 2)
    await cluster.worker({"replay": agents.approving})
    assert await until_ended(cluster, ids) == [("completed", None), ("failed", "wait_timeout")]
    async with connected(cluster.dsn) as connection:
        found = await events(connection, UUID(ids[0]))
    assert [event["type"] for event in found[-3:]] == ["resumed", "text", "done"]
    assert (found[-3]["reason"], found[-2]["delta"]) == ("deadline", ENDS[None])


async def test_a_cancel_and_an_input_at_once_end_a_waiting_stream_once(cluster: Cluster, tmp_path: Path) -> None:
    pods = [await cluster.pod() for _ in range(2)]
    await cluster.worker({"replay": agents.approving})
    ids = [await cluster.create(pods[0], input={"calls": str(tmp_path / "calls")}) for _ in range(20)]
    await until_waiting(cluster, len(ids))

    async def post(number: int, path: str, body: Any) -> int:
        url = f"{pods[number % 2].url}/v1/streams/{ids[number % len(ids)]}/{path}"
        return (await cluster.client.post(url, json=body)).status_code

    sending = (post(number, "inputs", {"data": APPROVAL}) for number in range(len(ids)))
    cancelling = (post(number, "cancel", None) for number in range(len(ids), 2 * len(ids)))
    # In pairs, and each of the two first in turn.
    pairs = [pair if number % 2 else pair[::-1] for number, pair in enumerate(zip(sending, cancelling, strict=True))]
    codes = await asyncio.gather(*(call for pair in pairs for call in pair))
    ends = await until_ended(cluster, ids)
    async with connected(cluster.dsn) as connection:
        for number, (stream_id, (status, _)) in enumerate(zip(ids, ends, strict=True)):
            sent, cancelled = (
                codes[2 * number : 2 * number + 2] if number % 2 else codes[2 * number : 2 * number + 2][::-1]
            )
            assert status in {"completed", "cancelled"}
            assert sent == 201 or (sent == 409 and status == "cancelled")
            assert cancelled in {200, 202}
            await events(connection, UUID(stream_id))
        assert await connection.fetchval("SELECT count(*) FROM baton.input") == 0


class Counted:
    """The agent that asks. `most` is how many of its runs after a wait went on at the same time."""

    continues = True

    def __init__(self) -> None:
        self.now = self.most = 0

    async def __call__(self, request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        self.now += request.state is not None
        self.most = max(self.most, self.now)
        async for item in agents.approving(request):
            yield item
        self.now -= request.state is not None


async def test_50_streams_that_are_woken_at_once_share_two_slots(cluster: Cluster, tmp_path: Path) -> None:
    pods, counted = [await cluster.pod() for _ in range(2)], Counted()
    for _ in range(2):
        await cluster.worker({"replay": counted}, worker_concurrency=1)
    async with calls_in(tmp_path) as calls:
        ids = [await cluster.create(pods[0], input={"calls": str(calls)}) for _ in range(50)]
        await until_waiting(cluster, len(ids))
        urls = [f"{pod.url}/v1/streams/{stream_id}/inputs" for stream_id, pod in zip(ids, cycle(pods), strict=False)]
        sent = await asyncio.gather(*(cluster.client.post(url, json={"data": APPROVAL}) for url in urls))
        assert {answer.status_code for answer in sent} == {201}
        assert set(await until_ended(cluster, ids)) == {("completed", None)}
        assert len(calls.read_text().split()) == len(ids)
    assert counted.most <= 2
