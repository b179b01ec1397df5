"""Pods and workers in this process, on a test's database, and the log's other writer: the test itself."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import asyncpg
import httpx2
from starlette.applications import Starlette
from tests.support.logbook import DEADLINE_SECONDS, until

from baton.app import create_app
from baton.db import event_log, history, notifications, signing_keys, stream_creation
from baton.errors import GenerationError
from baton.events import encode_event, encode_object, encode_text
from baton.generators import GenerationRequest, Generator
from baton.generators.protocol import Yielded
from baton.outcome import Outcome
from baton.pod.pod import Pod
from baton.pod.shard import Shard
from baton.server.graceful_shutdown import DrainingServer
from baton.server.listening_socket import bind
from baton.server.serve import uvicorn_config
from baton.settings import Settings
from baton.worker.worker import Worker

# Where pods and their client share an event loop, a slow one must not let a connection end just as it is used again.
QUICK = {"allow_anonymous": True, "drain_seconds": 0, "partition_days_ahead": 1, "http_keep_alive_seconds": 600}


class InProcessServer(DrainingServer):
    """A server that does not handle the test process's signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(frozen=True, slots=True)
class RunningPod:
    url: str
    app: Starlette

    @property
    def pod(self) -> Pod:
        pod: Pod = self.app.state.pod
        return pod

    @property
    def shard(self) -> Shard:
        """Its part for the only database."""
        (shard,) = self.pod.shards
        return shard

    @property
    def name(self) -> str:
        return self.pod.settings.pod_name

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric. With labels, 0 until it has a value for them."""
        value = self.pod.metrics.registry.get_sample_value(name, labels)
        assert value is not None or labels, name
        return value or 0


@contextlib.asynccontextmanager
async def serving(app: Starlette, *, baton_app: Starlette | None = None) -> AsyncIterator[str]:
    """Serve an application on a free port; yield its address. It is asked to drain before its end, as by a signal."""
    with contextlib.closing(bind("127.0.0.1", 0)) as listening:
        async with app.router.lifespan_context(app):
            pod = (baton_app or app).state.pod
            server = InProcessServer(uvicorn_config(app, pod), pod)
            task = asyncio.create_task(server.serve(sockets=[listening]))
            await until(lambda: server.started or task.done())
            try:
                yield f"http://127.0.0.1:{listening.getsockname()[1]}"
            finally:
                server.handle_exit(signal.SIGTERM, None)
                await task


class Cluster:
    """Starts pods and workers on one database, or on several (entries of `BATON_DATABASES`), and ends them all."""

    def __init__(self, dsn: str, databases: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.dsn = dsn
        self.databases = databases
        self.pods: list[RunningPod] = []
        self._serving: dict[str, contextlib.AsyncExitStack] = {}
        self._working: dict[Worker, asyncio.Task[None]] = {}
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        self.pool = await self._stack.enter_async_context(asyncpg.create_pool(self.dsn, min_size=0, max_size=4))
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
        client = httpx2.AsyncClient(timeout=DEADLINE_SECONDS, limits=limits, trust_env=False)
        self.client = await self._stack.enter_async_context(client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    def settings(self, **given: Any) -> Settings:
        where = {"database_url": self.dsn} if self.databases is None else {"databases": dict(self.databases)}
        return Settings.load(**QUICK | where | given)

    async def pod(self, **given: Any) -> RunningPod:
        settings = self.settings(**{"pod_name": f"pod-{len(self.pods) + 1}"} | given)
        app = create_app(settings)
        own = await self._stack.enter_async_context(contextlib.AsyncExitStack())
        url = await own.enter_async_context(serving(app))
        self._serving[url] = own
        pod = RunningPod(url, app)
        self.pods.append(pod)
        await until(lambda: pod.pod.ready)
        return pod

    async def worker(self, generators: Mapping[str, Generator], **given: Any) -> Worker:
        worker = Worker(self.settings(**given), generators)
        task = self._working[worker] = asyncio.create_task(worker.run())
        self._stack.push_async_callback(ended, task)
        ready = asyncio.create_task(worker.ready.wait())
        await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if task.done():
            task.result()
        return worker

    async def stop_pod(self, pod: RunningPod) -> None:
        """Have a pod leave now; the others are stopped at the end."""
        await self._serving.pop(pod.url).aclose()

    async def kill(self, worker: Worker) -> None:
        """End a worker as the loss of its machine does: it hands nothing over and keeps its row."""
        await ended(self._working.pop(worker))

    async def create(self, pod: RunningPod, **body: Any) -> str:
        """Create a stream; return its id."""
        answer = await self.client.post(f"{pod.url}/v1/streams", json={"input": None} | body)
        assert answer.status_code == 201, answer.text
        stream_id: str = answer.json()["id"]
        return stream_id

    async def author(self, *, tenant: str = "", generator: str = "replay", **metadata: Any) -> Author:
        """Return a stream that the test writes by itself. A worker that offers its generator might take it before."""
        new = stream_creation.NewStream(generator, None, metadata, "fail", tenant=tenant)
        stream, _ = await stream_creation.create(self.pool, new)
        author = Author(self.pool, stream.id)
        await author.claim()
        return author


@dataclass(slots=True)
class Author:
    """Writes a stream's log as a worker would, where and when the test wants."""

    pool: asyncpg.Pool[asyncpg.Record]
    id: UUID
    lines: list[bytes] = field(default_factory=list)
    epoch: int = 0

    async def claim(self) -> tuple[int, str | None]:
        """Claim the queued stream as a worker would; return the run, and why the one before was interrupted."""
        row = await self.pool.fetchrow(
            "UPDATE baton.stream SET status = 'running', epoch = epoch + 1, run = run + 1, attempts = attempts + 1 "
            "WHERE id = $1 AND status = 'queued' RETURNING epoch, run, interruption",
            self.id,
        )
        assert row is not None
        self.epoch = row["epoch"]
        return row["run"], row["interruption"]

    async def interrupt(self, reason: str) -> None:
        """Give the stream back to the queue, as a worker that leaves does, or the reaper of one that died."""
        await self.pool.execute(
            "UPDATE baton.stream SET status = 'queued', epoch = epoch + 1, queued_at = clock_timestamp(), "
            "interruption = $2 WHERE id = $1",
            self.id,
            reason,
        )

    async def wait(self, reason: Any, *, hours: float = 5) -> None:
        """Begin a wait for an input, as a worker does."""
        until = f"clock_timestamp() + make_interval(secs => {3600 * hours})"
        moment = await self.pool.fetchval(f"SELECT {until}")
        await self.write(encode_object({"type": "waiting", "for": reason, "until": moment.isoformat()}))
        await self.pool.execute(
            "UPDATE baton.stream SET status = 'waiting', worker_id = NULL, may_continue = true, wait_ends = false, "
            "waiting_since = clock_timestamp(), wait_until = $2 WHERE id = $1",
            self.id,
            moment,
        )

    async def resume(self) -> None:
        """Claim the interrupted stream and continue its answer."""
        run, reason = await self.claim()
        await self.write(encode_object({"type": "resumed", "run": run, "reason": reason}))

    @property
    def frames(self) -> list[bytes]:
        """What a client gets of it from the beginning."""
        return [b"id: %d\ndata: %b\n\n" % (seq, line) for seq, line in enumerate(self.lines, 1)]

    async def write(self, *lines: bytes, notify: bool = True, end: bool = False) -> event_log.Append:
        """Append a batch, with the terminal event last if `end` is given."""
        outcome = Outcome.completed("stop") if end else None
        item = self._next((*lines, outcome.encode()) if outcome else lines, outcome)
        await self._append([item], notify=notify)
        return item

    async def write_texts(self, sizes: Sequence[int], *, padding: int = 0, notify: bool = True) -> None:
        """Append batches with these numbers of events."""
        items = []
        for size in sizes:
            first = len(self.lines)
            items.append(self._next([text(first + offset, padding) for offset in range(size)]))
        await self._append(items, notify=notify)

    def lose(self, *lines: bytes) -> None:
        """Number events that the log will never hold."""
        self._next(lines)

    async def notify(self, *items: event_log.Append) -> None:
        keys = await signing_keys.read(self.pool, await history.read(self.pool))
        await notifications.notify(
            self.pool, notifications.EVENTS_CHANNEL, notifications.pack(items, time.time(), keys)
        )

    def _next(self, lines: Sequence[bytes], outcome: Outcome | None = None) -> event_log.Append:
        first = len(self.lines) + 1
        self.lines.extend(lines)
        return event_log.Append(self.id, self.epoch, first, len(self.lines), b"\n".join(lines), outcome)

    async def _append(self, items: list[event_log.Append], *, notify: bool) -> None:
        async with self.pool.acquire() as connection:
            assert await event_log.append(connection, items) == {self.id}
        if notify:
            await self.notify(*items)


class Tap:
    """A generator that yields what the test allows, one item at a time. `requests` has the requests it received."""

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self._allowed: asyncio.Queue[Yielded | GenerationError | None] = asyncio.Queue()

    async def __call__(self, request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        self.requests.append(request)
        self.started.set()
        try:
            while (item := await self._allowed.get()) is not None:
                if isinstance(item, GenerationError):
                    raise item
                yield item
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    def let(self, *items: Yielded) -> None:
        for item in items:
            self._allowed.put_nowait(item)

    def end(self) -> None:
        self._allowed.put_nowait(None)

    def fail(self, error: GenerationError) -> None:
        self._allowed.put_nowait(error)


async def echo(request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
    """Yield the items of a list that is the input."""
    for item in request.input:
        yield item


def text(number: int, padding: int = 0) -> bytes:
    return encode_text(f"token {number} " + "x" * padding)


def event(**fields: Any) -> bytes:
    return encode_event(fields)


async def ended(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
