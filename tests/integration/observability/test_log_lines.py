"""What the log says of each stream and of each connection, once, and to what it says that a line belongs."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import httpx2
import pytest
from tests.support.cluster import Cluster, Tap, echo
from tests.support.logbook import has_events, until, working

import baton
from baton.db import stream_ending
from baton.errors import GenerationError
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded
from baton.observability.log_context import ContextFilter
from baton.observability.log_formatters import json_formatter
from baton.outcome import Outcome

SECRET = "what was said"


class Log(logging.Handler):
    """What a process would write, read again."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(json_formatter())
        self.addFilter(ContextFilter())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))

    def about(self, part: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if part in line["message"]]

    async def one(self, part: str) -> dict[str, Any]:
        await until(lambda: bool(self.about(part)))
        (line,) = self.about(part)
        return line


@pytest.fixture
def log() -> Iterator[Log]:
    handler, root, ours = Log(), logging.getLogger(), logging.getLogger("baton")
    level = ours.level
    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    ours.setLevel(level)


ITEMS: list[Any] = [SECRET, {"type": "usage", "input_tokens": 3, "output_tokens": 4}]


async def test_a_stream_logs_a_line_when_created_and_when_it_ends(cluster: Cluster, log: Log) -> None:
    pod = await cluster.pod()
    await cluster.worker({"replay": echo}, worker_name="w-1")
    stream_id = await cluster.create(pod, input=ITEMS)
    line = await log.one("has ended")
    numbers = {name: line.pop(name) for name in list(line) if name.endswith("_seconds")}
    assert set(numbers) == {"queue_seconds", "time_to_first_token_seconds", "duration_seconds", "total_seconds"}
    assert 0 <= numbers["time_to_first_token_seconds"] <= numbers["duration_seconds"] <= numbers["total_seconds"]
    del line["time"]
    assert line == {
        "severity": "INFO",
        "message": f"Stream {stream_id} has ended: completed (stop).",
        "logger": "baton.observability.stream_end",
        "stream_id": stream_id,
        "status": "completed",
        "finish_reason": "stop",
        "generator": "replay",
        "attempt": 1,
        "run": 1,
        "epoch": 1,
        "events": 3,
        "size_bytes": len('{"type":"text","delta":"what was said"}{"type":"usage","input_tokens":3,"output_tokens":4}'),
        "tokens": 1,
        "usage": {"input_tokens": 3, "output_tokens": 4},
    }
    created = await log.one("is queued")
    assert (created["stream_id"], created["generator"]) == (stream_id, "replay")
    assert created["request_id"]
    assert SECRET not in json.dumps(log.lines)


async def test_a_failure_is_a_warning_with_its_code_and_without_its_text(cluster: Cluster, log: Log) -> None:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield "a"
        raise GenerationError("rate_limited", SECRET)

    pod = await cluster.pod()
    await cluster.worker({"replay": generate})
    await cluster.create(pod)
    line = await log.one("has ended")
    assert (line["severity"], line["status"], line["code"]) == ("WARNING", "failed", "rate_limited")
    assert SECRET not in json.dumps(log.lines)


async def test_lines_logged_by_a_generator_belong_to_its_stream(cluster: Cluster, log: Log) -> None:
    async def inner(words: str) -> None:
        logging.getLogger("my_agent").warning(words)

    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield "a"
        await asyncio.create_task(inner("thinking"))
        raise RuntimeError("a fault")

    pod = await cluster.pod()
    await cluster.worker({"replay": generate})
    stream_ids = {await cluster.create(pod) for _ in range(3)}
    await until(lambda: len(log.about("has ended")) == 3)
    for part, severity in (("thinking", "WARNING"), ("The generator of stream", "ERROR"), ("has ended", "WARNING")):
        assert {line["stream_id"] for line in log.about(part)} == stream_ids, part
        assert {line["severity"] for line in log.about(part)} == {severity}
    assert all("a fault" in line["stack_trace"] for line in log.about("The generator of stream"))


async def test_the_process_that_ends_an_unowned_stream_logs_it(cluster: Cluster, log: Log) -> None:
    pod = await cluster.pod()
    cancelled, erased = [await cluster.create(pod) for _ in range(2)]
    known = {"x-request-id": "mine"}
    assert (await cluster.client.post(f"{pod.url}/v1/streams/{cancelled}/cancel", headers=known)).status_code == 200
    assert (await cluster.client.delete(f"{pod.url}/v1/streams/{erased}", headers=known)).status_code == 204
    for stream_id, reason in ((cancelled, "cancelled"), (erased, "erased")):
        (line,) = (line for line in log.about("has ended") if line["stream_id"] == stream_id)
        assert (line["status"], line["finish_reason"], line["attempt"]) == ("cancelled", reason, 0)
        assert (line["severity"], line["request_id"], line["generator"]) == ("INFO", "mine", "replay")
        assert line["total_seconds"] > 0
    log.lines.clear()
    overdue = await cluster.create(pod)
    async with working(cluster.dsn, {"other": echo}, queue_timeout_seconds=0.01):
        line = await log.one("has ended")
    assert (line["stream_id"], line["severity"], line["code"]) == (overdue, "WARNING", "queue_timeout")


async def test_the_reaper_logs_the_end_for_a_dead_worker(cluster: Cluster, log: Log) -> None:
    pod, tap = await cluster.pod(), Tap()
    async with working(cluster.dsn, {"replay": tap}):
        stream_id = await cluster.create(pod, on_worker_lost="fail")
        tap.let("a")
        await until(lambda: has_events(cluster.pool, stream_id))
    async with working(cluster.dsn, {"other": echo}):
        line = await log.one("has ended")
    assert (line["stream_id"], line["severity"], line["code"]) == (stream_id, "WARNING", "worker_lost")
    assert (line["events"], line["attempt"], line["generator"]) == (2, 1, "replay")


async def test_the_time_of_a_continued_answer_counts_once(cluster: Cluster, log: Log) -> None:
    @baton.continues
    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "continue", "after": request.so_far.seq}
        yield "a"
        if request.run == 1:
            await asyncio.Event().wait()

    pod = await cluster.pod()
    async with working(cluster.dsn, {"replay": generate}):
        stream_id = await cluster.create(pod)
        await until(lambda: has_events(cluster.pool, stream_id))
    ago = "created_at = created_at - interval '30 min', started_at = started_at - interval '30 min'"
    await cluster.pool.execute(f"UPDATE baton.stream SET {ago}")
    async with working(cluster.dsn, {"replay": generate}):
        line = await log.one("has ended")
    assert (line["run"], line["interruption"]) == (2, "worker_lost")
    assert 1800 <= line["duration_seconds"] <= line["total_seconds"] < 3600


async def test_a_worker_that_lost_a_stream_does_not_log_its_end(cluster: Cluster, log: Log) -> None:
    pod, tap = await cluster.pod(), Tap()
    async with working(cluster.dsn, {"replay": tap}) as worker:
        stream_id = await cluster.create(pod)
        tap.let("a")
        await until(lambda: has_events(cluster.pool, stream_id))
        assert await stream_ending.end_any(cluster.pool, UUID(stream_id), Outcome.cancelled())
        tap.end()
        await until(lambda: worker.metrics.running == 0)
    lost = await log.one("is lost to this worker")
    assert (lost["stream_id"], lost["severity"]) == (stream_id, "WARNING")
    assert (await log.one("has ended"))["status"] == "cancelled"


@pytest.mark.parametrize(("dialect", "path"), [("native.answer", "events?view=answer"), ("text", "events")])
async def test_a_connection_logs_a_line_at_its_end(cluster: Cluster, log: Log, dialect: str, path: str) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    await author.write_texts([2, 3])
    await author.write(end=True)
    known = {"x-request-id": "mine", "accept": "text/plain" if dialect == "text" else "*/*"}
    if dialect != "text":
        known["last-event-id"] = "2"
    answer = await cluster.client.get(f"{pod.url}/v1/streams/{author.id}/{path}", headers=known)
    assert answer.status_code == 200
    line = await log.one("An event stream of")
    assert line.pop("duration_seconds") > 0
    del line["time"]
    before = 0 if dialect == "text" else 2
    size = len(answer.content) if dialect == "text" else len(answer.content[answer.content.index(b"id: 3") :])
    assert line == {
        "severity": "INFO",
        "message": f"An event stream of {author.id} is closed: ended.",
        "logger": "baton.pod.event_stream",
        "stream_id": str(author.id),
        "request_id": "mine",
        "dialect": dialect,
        "reason": "ended",
        "from_cursor": before,
        "cursor": 6,
        "events": 6 - before,
        "size_bytes": size,
    }


async def follow(cluster: Cluster, url: str) -> AsyncIterator[bytes]:
    async with cluster.client.stream("GET", url) as answer:
        async for part in answer.aiter_raw():
            yield part


async def test_the_line_has_the_reason_why_a_connection_ended(cluster: Cluster, log: Log) -> None:
    pod = await cluster.pod(sse_keep_alive_seconds=0.2, max_connection_age_seconds=0.3)
    author = await cluster.author()
    await author.write_texts([1])
    url = f"{pod.url}/v1/streams/{author.id}/events"
    async for _ in follow(cluster, url):
        pass
    assert (await log.one("is closed"))["reason"] == "max_age"
    log.lines.clear()

    slow = await cluster.pod()
    url = f"{slow.url}/v1/streams/{author.id}/events"
    async with httpx2.AsyncClient(trust_env=False) as leaver, leaver.stream("GET", url) as answer:
        await anext(answer.aiter_raw())
    assert (await log.one("is closed"))["reason"] == "client_disconnected"
    log.lines.clear()

    client = follow(cluster, url)
    await anext(client)
    await slow.pod.drain()
    async for _ in client:
        pass
    line = await log.one("is closed")
    assert (line["reason"], line["cursor"], line["severity"]) == ("drained", 1, "INFO")


async def test_events_are_not_logged(cluster: Cluster, log: Log) -> None:
    pod = await cluster.pod()
    await cluster.worker({"replay": echo})
    log.lines.clear()
    answer = await cluster.client.post(
        f"{pod.url}/v1/streams", json={"input": ["a"] * 500}, headers={"accept": "text/event-stream"}
    )
    assert answer.text.count("id: ") == 501
    await log.one("has ended")
    await log.one("is closed")
    assert len(log.lines) == 3, log.lines
