"""Agents of other frameworks as generators: the real frameworks, a fake provider, and real workers that die."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from uuid import UUID

import orjson
import pytest
from tests.clients.adapters.my_agents import FRAMEWORKS, clients
from tests.clients.adapters.runs import Runs, of, said
from tests.clients.adapters.scripted_server import ScriptedServer, call, reasoning, text
from tests.support.logbook import connected, ended, events, queue, row, until, working
from tests.support.logbook import text as shown
from tests.support.openai_server import INPUT_TOKENS
from tests.support.pacing import Pace
from tests.support.processes import Running, environment, running
from tests.support.provider_server import refusal

import baton
from baton.db import inputs
from baton.db.postgres import Connection
from baton.generators import Generator

SEARCH = call("call-1", "search", '{"query":', '"bees"}')
RESEARCH = ([reasoning("Let ", "me think."), text("I look ", "it up. "), SEARCH], [text("Bees ", "fly.")])
DELETE = (
    [call("call-1", "delete", '{"name":"a"}'), call("call-2", "delete", '{"name":"b"}')],
    [text("One is gone.")],
)
ANSWER = "I look it up. Bees fly."

Make = Callable[[str, Path], Generator]


@pytest.fixture(params=FRAMEWORKS)
def make(request: pytest.FixtureRequest) -> Make:
    """Makes the agent of each framework."""
    return FRAMEWORKS[request.param]


@pytest.fixture(autouse=True)
async def _closed_clients() -> AsyncIterator[None]:
    yield
    while clients:
        await clients.pop().close()


@pytest.fixture(params=FRAMEWORKS)
def name(request: pytest.FixtureRequest) -> str:
    """The name of each framework's agent in workers."""
    found: str = request.param
    return found


def calls(folder: Path) -> list[str]:
    """The calls of tools, without their keys."""
    file = folder / "calls"
    return [line.rpartition(" ")[0] for line in file.read_text().splitlines()] if file.exists() else []


async def test_text_reasoning_tools_and_usage(make: Make, tmp_path: Path) -> None:
    async with ScriptedServer(*RESEARCH) as server:
        found = await Runs(make(server.url, tmp_path)).run()
    assert found[0] == {"type": "continue", "after": 0}
    assert "".join(event["delta"] for event in of(found, "reasoning")) == "Let me think."
    assert said(found) == ANSWER
    first, *rest = of(found, "tool_call")
    assert (first["index"], first["id"], first["name"], first["run_by"]) == (0, "call-1", "search", "generator")
    assert "".join(event["arguments_delta"] for event in [first, *rest]) == '{"query":"bees"}'
    assert of(found, "tool_result") == [{"type": "tool_result", "id": "call-1", "result": "All about bees."}]
    assert [event["input_tokens"] for event in of(found, "usage")] == [INPUT_TOKENS] * 2
    assert [event["output_tokens"] for event in of(found, "usage")] == [6, 2]
    assert of(found, "finish")[-1] == {"type": "finish", "finish_reason": "stop"}
    # Each token as it comes, and a tool's result before what the model makes of it.
    kinds = [event["type"] if isinstance(event, Mapping) else "text" for event in found]
    assert kinds.count("text") == 4
    assert kinds.index("tool_result") < len(kinds) - 1 - kinds[::-1].index("text")


async def test_a_conversation_in_another_form(make: Make, tmp_path: Path) -> None:
    image = "data:image/png;base64,iVBORw0KGgo="
    conversation = {
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": image}}]},
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "old", "type": "function", "function": {"name": "search", "arguments": '{"query":"x"}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "old", "content": "Nothing."},
            {"role": "user", "content": "And bees?"},
        ]
    }
    async with ScriptedServer([text("Bees fly.")]) as server:
        found = await Runs(make(server.url, tmp_path), conversation).run()
        sent = orjson.dumps(server.inputs[0]).decode()
    assert said(found) == "Bees fly."
    for part in ("Be short.", image, '"call_id":"old"', "Nothing.", "And bees?"):
        assert part in sent


async def test_another_run_repeats_itself_without_a_model_or_a_tool(make: Make, tmp_path: Path) -> None:
    async with ScriptedServer(*RESEARCH) as server:
        runs = Runs(make(server.url, tmp_path))
        found = [await runs.run() for _ in range(2)]
        assert server.asked == [0, 1]
    assert said(found[0]) == said(found[1]) == ANSWER
    for kind in ("tool_result", "usage"):
        assert of(found[0], kind) == of(found[1], kind)
    assert calls(tmp_path) == ["search bees"]


async def test_approvals_come_one_by_one(make: Make, tmp_path: Path) -> None:
    async with ScriptedServer(*DELETE) as server:
        runs = Runs(make(server.url, tmp_path))
        found = await runs.run()
        assert [event["id"] for event in of(found, "tool_approval")] == ["call-1", "call-2"]
        wait = {"type": "wait", "for": {"type": "approval", "calls": ["call-1", "call-2"]}}
        assert found[-1] == wait
        runs.inputs.add({"type": "approval", "call_id": "call-2", "approved": False, "reason": "We need it."})
        assert (await runs.run())[-1] == wait
        assert calls(tmp_path) == []
        runs.inputs.add({"type": "approval", "call_id": "call-1", "approved": True, "reason": None})
        found = await runs.run()
        assert {event["id"]: event["result"] for event in of(found, "tool_result")} == {
            "call-1": "Deleted a.",
            "call-2": "We need it.",
        }
        assert said(found) == "One is gone."
        assert said(await runs.run()) == "One is gone."
        assert server.asked == [0, 1]
    assert calls(tmp_path) == ["delete a"]


async def test_what_people_say_goes_to_the_next_turn(make: Make, tmp_path: Path) -> None:
    pace = Pace(allowed=2)
    async with ScriptedServer(*RESEARCH, [text("Bye.")], pace=pace) as server:
        runs = Runs(make(server.url, tmp_path))
        running = asyncio.create_task(runs.run())
        await until(lambda: server.tokens == 2)
        runs.inputs.add({"type": "message", "message": {"role": "user", "content": "Be quick."}})
        pace.release(5)  # the first turn, and one of two tokens of the next one
        await until(lambda: server.asked == [0, 1] and server.tokens == 7)
        runs.inputs.add({"type": "message", "message": {"role": "user", "content": "Say bye."}})
        pace.release()
        found = await running
        assert said(found) == ANSWER + "Bye."
        assert "Be quick." not in str(server.inputs[0])
        assert "Be quick." in str(server.inputs[1])
        assert str(server.inputs[1]).index("All about bees.") < str(server.inputs[1]).index("Be quick.")
        last = str(server.inputs[2])
        assert last.index("Be quick.") < last.index("Bees fly.") < last.index("Say bye.")
        assert said(await runs.run()) == ANSWER + "Bye."
        assert server.asked == [0, 1, 2]


async def test_leaving_it_ends_the_call_of_the_model(make: Make, tmp_path: Path) -> None:
    async with ScriptedServer(*RESEARCH, pace=Pace(allowed=3)) as server:
        events = Runs(make(server.url, tmp_path)).start()
        while await anext(events) != "I look ":
            pass
        await events.aclose()
        await until(lambda: server.only.status == "cancelled")


async def test_cancelling_it_cancels_its_tool(make: Make, tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    async with ScriptedServer(*RESEARCH) as server:
        running = asyncio.create_task(Runs(make(server.url, tmp_path)).run())
        await until(lambda: calls(tmp_path) == ["search bees"])
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        names = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}  # type: ignore[union-attr]
        assert not {name for name in names if "search" in name or "Steps" in name}
        assert server.asked == [0]


async def test_a_providers_error_has_its_code(make: Make, dsn: str, tmp_path: Path) -> None:
    async with ScriptedServer(*RESEARCH) as server, connected(dsn) as connection:
        server.refusals = [refusal(429, {"message": "slow down", "type": "rate_limit", "code": "rate_limit"})]
        async with working(dsn, make(server.url, tmp_path)):
            stream = await ended(connection, await queue(dsn, given="Bees?", may_continue=True))
    assert (stream.status, stream.error_code) == ("failed", "provider_rate_limited")


async def waits(connection: Connection, stream_id: UUID) -> None:
    async def is_waiting() -> bool:
        return (await row(connection, stream_id)).status == "waiting"

    await until(is_waiting)


async def test_an_approval_wakes_it_on_another_worker(make: Make, dsn: str, tmp_path: Path) -> None:
    async with ScriptedServer(*DELETE) as server, connected(dsn) as connection:
        stream_id = await queue(dsn, given="Delete a and b.", may_continue=True)
        async with working(dsn, make(server.url, tmp_path)):
            await waits(connection, stream_id)
        for number, approved in (("call-1", True), ("call-2", False)):
            data = {"type": "approval", "call_id": number, "approved": approved, "reason": None}
            await inputs.add(connection, stream_id, orjson.dumps(data))
            async with working(dsn, make(server.url, tmp_path)):
                await (waits if approved else ended)(connection, stream_id)
        found = await events(connection, stream_id)
        assert server.asked == [0, 1]
    assert not of(found, "reset")
    assert [event["reason"] for event in of(found, "resumed")] == ["input", "input"]
    assert [event["id"] for event in of(found, "tool_call") if "id" in event] == ["call-1", "call-2"]
    assert shown(found) == "One is gone."
    assert calls(tmp_path) == ["delete a"]


@contextlib.asynccontextmanager
async def worker(dsn: str, server: ScriptedServer, folder: Path) -> AsyncIterator[Running]:
    """A worker that is a process of its own."""
    quick = {"BATON_WORKER_HEARTBEAT_SECONDS": "0.1", "BATON_LEASE_SECONDS": "0.8", "BATON_QUEUE_POLL_SECONDS": "0.1"}
    named = ",".join(f"{name}=my_agents:{name}_generate" for name in FRAMEWORKS)
    env = environment(
        BATON_DATABASE_URL=dsn, BATON_GENERATORS=named, PROVIDER_URL=server.url, FOLDER=str(folder), **quick
    )
    async with running("worker", env=env, cwd=Path(__file__).parent) as started:
        await started.said("is ready for")
        yield started


@contextlib.asynccontextmanager
async def written(dsn: str, name: str) -> AsyncIterator[tuple[Connection, UUID]]:
    """Begin an answer."""
    async with connected(dsn) as connection:
        yield connection, await queue(dsn, generator=name, given="Bees?", may_continue=True)


async def until_shown(connection: Connection, stream_id: UUID, what: str) -> None:
    async def is_shown() -> bool:
        return shown(await events(connection, stream_id)).endswith(what)

    await until(is_shown)


@pytest.mark.parametrize("differs", [False, True])
async def test_a_worker_dies_while_a_model_answers(name: str, differs: bool, dsn: str, tmp_path: Path) -> None:
    pace = Pace(allowed=7)
    async with ScriptedServer(*RESEARCH, pace=pace) as server, written(dsn, name) as (connection, stream_id):
        async with worker(dsn, server, tmp_path) as first:
            await until_shown(connection, stream_id, "Bees ")
            first.signal(signal.SIGKILL)
            await first.ends()
        if differs:
            server.turns[1] = [text("A bee ", "flies.")]
        pace.release()
        async with worker(dsn, server, tmp_path):
            stream = await ended(connection, stream_id)
        found = await events(connection, stream_id)
        assert stream.status == "completed"
        assert server.asked == ([0, 1, 1, 1] if differs else [0, 1, 1])
    assert [event["reason"] for event in of(found, "reset")] == (["output_differs"] if differs else [])
    assert shown(found) == ("I look it up. A bee flies." if differs else ANSWER)
    assert len(of(found, "tool_result")) == (2 if differs else 1)
    assert calls(tmp_path) == ["search bees"]


async def test_a_worker_dies_while_a_tool_runs(name: str, dsn: str, tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    async with ScriptedServer(*RESEARCH) as server, written(dsn, name) as (connection, stream_id):
        async with worker(dsn, server, tmp_path) as first:
            await until(lambda: calls(tmp_path) == ["search bees"])
            await until_shown(connection, stream_id, "it up. ")
            first.signal(signal.SIGKILL)
            await first.ends()
        (tmp_path / "hold").unlink()
        async with worker(dsn, server, tmp_path):
            stream = await ended(connection, stream_id)
        found = await events(connection, stream_id)
        assert server.asked == [0, 1]
    assert stream.status == "completed"
    assert not of(found, "reset")
    assert shown(found) == ANSWER
    keys = {line.rpartition(" ")[2] for line in (tmp_path / "calls").read_text().splitlines()}
    assert (len(calls(tmp_path)), len(keys)) == (2, 1)
    assert stream.usage is not None
    assert stream.usage["input_tokens"] == 2 * INPUT_TOKENS


async def test_a_worker_that_leaves_lets_the_model_finish_its_turn(name: str, dsn: str, tmp_path: Path) -> None:
    pace = Pace(allowed=3)
    async with ScriptedServer(*RESEARCH, pace=pace) as server, written(dsn, name) as (connection, stream_id):
        async with worker(dsn, server, tmp_path) as first:
            await until_shown(connection, stream_id, "I look ")
            first.signal(signal.SIGTERM)
            pace.release()
            await first.ends()
        async with worker(dsn, server, tmp_path):
            stream = await ended(connection, stream_id)
        found = await events(connection, stream_id)
        assert server.asked == [0, 1]
    assert (stream.status, shown(found)) == ("completed", ANSWER)
    assert not of(found, "reset")
    assert calls(tmp_path) == ["search bees"]


def test_the_adapters_are_generators_that_continue(make: Make, tmp_path: Path) -> None:
    assert baton.generators.can_continue(make("http://localhost:1", tmp_path))
