"""Answers of providers that outlive their workers, through the official SDK: what the provider is asked to do."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from tests.support.cluster import Tap
from tests.support.logbook import connected, ended, events, row, settings, text, until, until_tail, working
from tests.support.openai_server import Item, OpenAIServer
from tests.support.pacing import Pace
from tests.support.vllm_server import VllmServer

from baton.db import stream_creation, stream_ending
from baton.db.postgres import Connection, Pool, pool
from baton.db.stream_creation import Limits, NewStream
from baton.generators import close_generators, load_generators, reattach
from baton.worker.worker import Worker

pytestmark = pytest.mark.clients  # the official SDK, against fake providers

WORDS = [f"word{number} " for number in range(40)]
TEXT = "".join(WORDS)
HALF = 20
UNWATCHED_SECONDS = 1.5
WATCHING: dict[str, Any] = {"watch_interval_seconds": 0.1, "database_timeout_seconds": 1}


class Service:
    """A database with workers that ask one provider, under the name `model`."""

    def __init__(self, dsn: str, connection: Connection, opened: Pool, url: str, resume: str) -> None:
        self.dsn = dsn
        self.connection = connection
        self.pool = opened
        self._given = {
            "openai_base_url": f"{url}/v1",
            "openai_api": "chat" if resume == "prefix" else "responses",
            "models": {"model": {"generator": "openai", "resume": resume}},
        }

    @contextlib.asynccontextmanager
    async def worker(self, **changes: Any) -> AsyncIterator[Worker]:
        """Run a worker, which is lost at the end: it hands nothing over."""
        generators = load_generators(settings(self.dsn, **self._given))
        async with working(self.dsn, {"model": generators["model"]}, **changes) as worker:
            yield worker
        await close_generators(generators)

    def bystander(self, **changes: Any) -> contextlib.AbstractAsyncContextManager[Worker]:
        """Run a worker that does not offer the model, and takes care of lost streams."""
        return working(self.dsn, {"other": Tap()}, **changes)

    async def create(self, *, may_continue: bool = True, **limits: Any) -> UUID:
        new = NewStream("model", "Hello", {}, "retry", may_continue=may_continue, limits=Limits(**limits))
        return (await stream_creation.create(self.pool, new))[0].id

    async def is_free(self, stream_id: UUID) -> bool:
        """Whether no worker has a stream."""
        return (await row(self.connection, stream_id)).status != "running"

    async def calls(self) -> int:
        found: int = await self.connection.fetchval("SELECT count(*) FROM baton.stop_call")
        return found

    async def whole(self, stream_id: UUID) -> list[dict[str, Any]]:
        """Wait for the end of an answer, and require that viewers have not noticed the loss of its worker."""
        stream = await ended(self.connection, stream_id)
        found = await events(self.connection, stream_id)
        assert (stream.status, text(found)) == ("completed", TEXT)
        assert [event for event in found if event["type"] == "reset"] == []
        return found


@contextlib.asynccontextmanager
async def serving(dsn: str, url: str, resume: str) -> AsyncIterator[Service]:
    async with connected(dsn) as connection, pool(dsn, size=2, timeout_seconds=10) as opened:
        yield Service(dsn, connection, opened, url, resume)


@contextlib.asynccontextmanager
async def openai(dsn: str) -> AsyncIterator[tuple[OpenAIServer, Service]]:
    """OpenAI, which stops in the middle of an answer."""
    async with OpenAIServer(Item(WORDS), pace=Pace(allowed=HALF)) as server, serving(dsn, server.url, "reattach") as it:
        yield server, it


@contextlib.asynccontextmanager
async def vllm(dsn: str) -> AsyncIterator[tuple[VllmServer, Service]]:
    async with VllmServer(TEXT, pace=Pace(allowed=HALF)) as server, serving(dsn, server.url, "prefix") as it:
        yield server, it


@pytest.fixture
def saves_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reattach, "SAVE_SECONDS", 0.0)


@pytest.mark.usefixtures("saves_often")
async def test_the_successor_of_a_lost_worker_asks_openai_only_for_the_rest(dsn: str) -> None:
    async with openai(dsn) as (server, service):
        async with service.worker():
            stream_id = await service.create()
            await until_tail(service.connection, stream_id, HALF)
        await until(lambda: not server.readers)
        server.pace.release()
        await until(lambda: server.only.status == "completed")
        async with service.worker():
            found = await service.whole(stream_id)
        assert (server.started, server.tokens, server.cancels) == (1, len(WORDS), [])
        first_delta, (cursor,) = 5, server.cursors
        assert first_delta <= cursor < first_delta + HALF  # type: ignore[operator]
        assert (found[-1]["usage"]["output_tokens"], len([e for e in found if e["type"] == "usage"])) == (40, 1)
        assert await service.connection.fetchval("SELECT count(*) FROM baton.stream_state") == 0
        assert await service.calls() == 0


async def test_the_id_is_saved_before_the_first_event(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reattach, "SAVE_SECONDS", 3600.0)
    async with openai(dsn) as (server, service):
        server.pace.allowed = 1
        async with service.worker():
            stream_id = await service.create()
            await until_tail(service.connection, stream_id, 1)
        server.pace.release()
        async with service.worker():
            await service.whole(stream_id)
        assert (server.started, server.cursors) == (1, [None])


async def test_a_worker_that_leaves_hands_the_response_over(dsn: str) -> None:
    async with openai(dsn) as (server, service):
        async with service.worker() as leaving, service.worker():
            stream_id = await service.create()
            await until_tail(service.connection, stream_id, HALF)
            leaving.leave()
            server.pace.release()
            await service.whole(stream_id)
        assert (server.started, server.cancels) == (1, [])


async def test_a_response_that_openai_has_forgotten_starts_over(dsn: str) -> None:
    async with openai(dsn) as (server, service):
        async with service.worker():
            stream_id = await service.create()
            await until_tail(service.connection, stream_id, HALF)
        server.forget()
        server.pace.release()
        async with service.worker():
            stream = await ended(service.connection, stream_id)
        found = await events(service.connection, stream_id)
        assert (stream.status, text(found), server.started) == ("completed", TEXT, 2)
        assert [event["reason"] for event in found if event["type"] == "reset"] == ["worker_lost"]


async def test_a_stream_that_must_start_over_cancels_the_earlier_response(dsn: str) -> None:
    async with openai(dsn) as (server, service):
        async with service.worker():
            stream_id = await service.create(may_continue=False)
            await until_tail(service.connection, stream_id, HALF)
        async with service.worker():
            await until(lambda: server.started == 2)
            server.pace.release()
            await ended(service.connection, stream_id)
        first, second = server.generations.values()
        assert (first.status, first.tokens, second.status) == ("cancelled", HALF, "completed")
        assert text(await events(service.connection, stream_id)) == TEXT


async def test_a_response_that_differs_from_the_log_is_cancelled_and_started_over(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reattach, "SAVE_SECONDS", 3600.0)
    async with openai(dsn) as (server, service):
        async with service.worker():
            stream_id = await service.create()
            await until_tail(service.connection, stream_id, HALF)
        deltas = [event for event in server.only.events if "delta" in event]
        deltas[3]["delta"] = "another "
        async with service.worker():
            await until(lambda: server.started == 2)
            server.pace.release()
            await ended(service.connection, stream_id)
        found = await events(service.connection, stream_id)
        assert [generation.status for generation in server.generations.values()] == ["cancelled", "completed"]
        assert [event["reason"] for event in found if event["type"] == "reset"] == ["output_differs"]
        assert text(found) == TEXT


async def test_the_successor_of_a_lost_worker_sends_vllm_the_text_so_far(dsn: str) -> None:
    async with vllm(dsn) as (server, service):
        async with service.worker():
            stream_id = await service.create()
            await until_tail(service.connection, stream_id, HALF)
        await until(lambda: server.aborted == 1)
        so_far = text(await events(service.connection, stream_id))
        server.pace.release()
        async with service.worker():
            await service.whole(stream_id)
        assert TEXT.startswith(so_far)
        assert server.prefixes == [None, so_far.rstrip()]
        assert server.requests[1].body["messages"][-1] == {"role": "assistant", "content": so_far.rstrip()}


async def test_an_early_end_with_a_living_worker_closes_the_connection_to_vllm(dsn: str) -> None:
    async with vllm(dsn) as (server, service), service.worker():
        stream_id = await service.create()
        await until_tail(service.connection, stream_id, HALF)
        await stream_ending.request_cancel(service.pool, stream_id)
        await until(lambda: server.aborted == 1)
        assert server.tokens == HALF


End = Callable[[Service, UUID], Awaitable[object]]


async def cancel(service: Service, stream_id: UUID) -> None:
    await stream_ending.request_cancel(service.pool, stream_id)


async def erase(service: Service, stream_id: UUID) -> None:
    assert await stream_ending.erase(service.pool, stream_id)


async def wait(service: Service, stream_id: UUID) -> None:
    await ended(service.connection, stream_id)


async def is_stopped(server: OpenAIServer, service: Service) -> None:
    """Wait until the provider generates nothing more for this stream, and nobody has anything to do."""
    await until(lambda: not server.live)

    async def nothing_left() -> bool:
        return await service.calls() == 0

    await until(nothing_left)
    server.pace.release()
    assert (server.only.status, server.tokens, len(server.cancels)) == ("cancelled", HALF, 1)
    assert await service.connection.fetchval("SELECT count(*) FROM baton.stream_state") == 0


@pytest.mark.parametrize(
    ("end", "limits"),
    [
        (cancel, {}),
        (erase, {}),
        (wait, {"max_duration": 1.0}),
        (wait, {"idle_timeout": 0.5}),
        (wait, {"unwatched_timeout": UNWATCHED_SECONDS}),
    ],
    ids=["cancel", "erase", "max_duration", "idle_timeout", "unwatched"],
)
async def test_an_early_end_with_a_living_worker_cancels_the_response(
    dsn: str, end: End, limits: dict[str, Any]
) -> None:
    async with openai(dsn) as (server, service), service.worker(**WATCHING):
        stream_id = await service.create(**limits)
        await until_tail(service.connection, stream_id, HALF)
        await end(service, stream_id)
        await is_stopped(server, service)


@pytest.mark.parametrize(
    ("end", "limits"),
    [
        (cancel, {}),
        (erase, {}),
        (wait, {"unwatched_timeout": UNWATCHED_SECONDS}),
        (wait, {"queue_timeout": 0.5}),
    ],
    ids=["cancel", "erase", "unwatched", "queue_timeout"],
)
async def test_an_early_end_after_the_loss_of_the_worker_cancels_the_response(
    dsn: str, end: End, limits: dict[str, Any]
) -> None:
    """The stream ends while no worker offers its generator; the next one that does makes the call."""
    async with openai(dsn) as (server, service):
        async with service.worker():
            stream_id = await service.create(**limits)
            await until_tail(service.connection, stream_id, HALF)
        async with service.bystander(**WATCHING):
            await until(lambda: service.is_free(stream_id))
            await end(service, stream_id)
            assert await service.calls() == 1
            assert (server.cancels, len(server.live)) == ([], 1)
        async with service.worker():
            await is_stopped(server, service)


async def test_the_end_after_too_many_losses_cancels_the_response(dsn: str) -> None:
    async with openai(dsn) as (server, service):
        async with service.worker():
            stream_id = await service.create()
            await until_tail(service.connection, stream_id, HALF)
        async with service.bystander():
            await until(lambda: service.is_free(stream_id))
        async with service.worker():
            await until(lambda: server.readers == 1)
        async with service.bystander(max_attempts=1):
            assert (await ended(service.connection, stream_id)).error_code == "worker_lost"
        assert (server.started, server.cancels) == (1, [])
        async with service.worker():
            await is_stopped(server, service)


async def test_an_end_whose_worker_dies_before_it_could_stop_the_response(dsn: str) -> None:
    async with openai(dsn) as (server, service):
        async with service.worker():
            stream_id = await service.create()
            await until_tail(service.connection, stream_id, HALF)
            server.silent_cancels = True
            await cancel(service, stream_id)
            await ended(service.connection, stream_id)
            await until(lambda: server.unanswered == 1)
        server.silent_cancels = False
        await service.connection.execute("UPDATE baton.stop_call SET due_at = due_at - interval '1 minute'")
        async with service.worker():
            await is_stopped(server, service)
