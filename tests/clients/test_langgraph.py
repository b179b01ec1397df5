"""LangGraph, and LangChain's agents and models, as generators: the real frameworks, a fake provider, real workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from tests.clients import graph_agents
from tests.clients.chat_completions import BILLED, calls, says
from tests.support.cluster import Cluster
from tests.support.logbook import ended, events, until
from tests.support.processes import Running, environment, running
from tests.support.provider_server import ProviderServer, Reply, refusal

from baton import GenerationRequest, Generator
from baton.adapters import langgraph
from baton.db import inputs, stream_creation
from baton.db.stream_creation import NewStream
from baton.worker import past

QUICK: dict[str, Any] = {"worker_heartbeat_seconds": 0.1, "lease_seconds": 0.8, "queue_poll_seconds": 0.1}
APPROVAL = {"type": "approval", "call_id": "call_1"}


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """The file in which tools note their calls."""
    path = tmp_path / "calls"
    path.touch()
    return path


class Asking:
    """Streams on one database, and what they got."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    async def create(self, given: Any = "What are bees?") -> UUID:
        new = NewStream("agent", given, {}, "retry", may_continue=True)
        return (await stream_creation.create(self.cluster.pool, new))[0].id

    async def send(self, stream_id: UUID, data: Any) -> None:
        await inputs.add(self.cluster.pool, stream_id, json.dumps(data).encode())

    async def log(self, stream_id: UUID) -> list[dict[str, Any]]:
        async with self.cluster.pool.acquire() as connection:
            return await events(connection, stream_id)

    async def has(self, stream_id: UUID, kind: str, count: int = 1) -> None:
        async def seen() -> bool:
            return [event["type"] for event in await self.log(stream_id)].count(kind) >= count

        await until(seen)

    async def saved(self, stream_id: UUID) -> None:
        """Wait until a state covers all that the stream has got, and the result of a tool is among it."""

        async def covered() -> bool:
            async with self.cluster.pool.acquire() as connection:
                found = await past.read(connection, stream_id)
            return bool(found.so_far.tool_results) and found.state_seq == found.so_far.seq

        await until(covered)

    async def end(self, stream_id: UUID) -> list[dict[str, Any]]:
        async with self.cluster.pool.acquire() as connection:
            await ended(connection, stream_id)
        return await self.log(stream_id)

    async def answer(self, generator: Generator, given: Any = "What are bees?") -> list[dict[str, Any]]:
        """Return what a stream got of one generator."""
        await self.cluster.worker({"agent": generator})
        return await self.end(await self.create(given))


@pytest.fixture
def asking(cluster: Cluster) -> Asking:
    """A database without workers."""
    return Asking(cluster)


def worker(asking: Asking, server: ProviderServer, record: Path, name: str) -> Any:
    """A worker as a process of its own."""

    @contextlib.asynccontextmanager
    async def process() -> AsyncIterator[Running]:
        env = environment(
            BATON_DATABASE_URL=asking.cluster.dsn,
            BATON_GENERATORS=f"agent=graph_agents:{name}",
            MODEL_URL=server.url,
            TOOL_RECORD=str(record),
            **{f"BATON_{key.upper()}": str(value) for key, value in QUICK.items()},
        )
        async with running("worker", env=env, cwd=Path(__file__).parent) as started:
            await started.said("is ready for")
            yield started

    return process()


def is_state(event: Any) -> bool:
    return isinstance(event, dict) and event["type"] == "state"


def noted(record: Path) -> str:
    """Return the calls of tools."""
    return record.read_text()


def of(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in found if event["type"] == kind]


def text(found: list[dict[str, Any]]) -> str:
    return "".join(event["delta"] for event in of(found, "text"))


async def test_an_agent_streams_text_calls_results_custom_events_and_usage(asking: Asking, record: Path) -> None:
    async with ProviderServer(calls("call_1", "search", query="bees"), says("Bees ", "fly.")) as server:
        found = await asking.answer(langgraph.generator(graph_agents.agent(server.url, record)))
    kinds = [event["type"] for event in found]
    assert kinds == ["tool_call", "tool_call", "usage", "custom", "tool_result", "text", "text", "usage", "done"]
    assert found[0] == {"type": "tool_call", "index": 0, "id": "call_1", "name": "search", "arguments_delta": '{"q'}
    assert found[3] == {"type": "custom", "name": "progress", "data": {"query": "bees"}}
    assert found[4] == {"type": "tool_result", "id": "call_1", "result": "facts about bees"}
    assert found[2] == found[7] == {"type": "usage", **BILLED}
    assert (text(found), found[-1]["finish_reason"]) == ("Bees fly.", "stop")
    assert [message["role"] for message in server.requests[1].body["messages"]] == ["user", "assistant", "tool"]


async def test_every_form_of_input_reaches_the_model(asking: Asking) -> None:
    given = {
        "instructions": "Be brief.",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
    }
    async with ProviderServer(says("Hello.")) as server:
        found = await asking.answer(langgraph.generator(graph_agents.model(server.url)), given)
    assert text(found) == "Hello."
    assert server.requests[0].body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]


async def test_a_runnable_shows_what_its_models_say_and_bills_it(asking: Asking) -> None:
    async with ProviderServer(says("Hel", "lo.")) as server:
        chain = graph_agents.model(server.url) | (lambda message: message.content.upper())
        found = await asking.answer(langgraph.generator(chain))
    assert [event["type"] for event in found] == ["text", "text", "usage", "done"]
    assert text(found) == "Hello."


async def test_reasoning_and_messages_that_do_not_stream(asking: Asking) -> None:
    class Thinking(GenericFakeChatModel):
        async def _astream(self, *_given: Any, **_named: Any) -> AsyncIterator[ChatGenerationChunk]:
            yield ChatGenerationChunk(message=AIMessageChunk(content=[{"type": "reasoning", "reasoning": "Hm. "}]))
            yield ChatGenerationChunk(message=AIMessageChunk(content="Yes."))

    def aside(_state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(" Or no.")]}

    async def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await Thinking(messages=iter(())).ainvoke(state["messages"])]}

    graph: Any = StateGraph(MessagesState)
    graph.add_node("think", think).add_node("aside", aside)
    compiled = graph.add_edge(START, "think").add_edge("think", "aside").compile()
    found = await asking.answer(langgraph.generator(lambda _request: compiled))
    assert of(found, "reasoning") == [{"type": "reasoning", "delta": "Hm. "}]
    assert text(found) == "Yes. Or no."


async def test_an_error_of_the_provider_ends_the_stream_by_its_name(asking: Asking, record: Path) -> None:
    async with ProviderServer(refusal(429, {"message": "slow down"})) as server:
        found = await asking.answer(langgraph.generator(graph_agents.agent(server.url, record)))
    assert (found[-1]["status"], found[-1]["error"]["code"]) == ("failed", "provider_rate_limited")


async def test_a_cancel_ends_the_call_of_the_model(asking: Asking, record: Path) -> None:
    pod = await asking.cluster.pod()
    async with ProviderServer(says("Bees ", ending="hang")) as server:
        await asking.cluster.worker({"agent": langgraph.generator(graph_agents.agent(server.url, record))})
        stream_id = await asking.create()
        await asking.has(stream_id, "text")
        answer = await asking.cluster.client.post(f"{pod.url}/v1/streams/{stream_id}/cancel")
        assert answer.status_code == 202
        assert (await asking.end(stream_id))[-1]["status"] == "cancelled"
        await server.disconnected.wait()


async def test_a_killed_worker_costs_the_cut_step_and_no_tool_runs_twice(asking: Asking, record: Path) -> None:
    replies = calls("call_1", "search", query="bees"), says("Bees sw", ending="hang"), says("Bees fly.")
    async with ProviderServer(*replies) as server:
        stream_id = await asking.create()
        async with worker(asking, server, record, "searching") as first:
            await asking.has(stream_id, "text")
            first.signal(signal.SIGKILL)
            await first.ends()
        async with worker(asking, server, record, "searching"):
            found = await asking.end(stream_id)
    kinds = [event["type"] for event in found]
    reset = kinds.index("reset")
    # The finished step is shown again, and not done again.
    assert kinds[reset + 1 :] == ["tool_call", "custom", "tool_result", "text", "usage", "done"]
    assert text(found[reset:]) == "Bees fly."
    assert noted(record) == "bees\n"
    assert len(server.requests) == 3
    assert found[-1]["usage"]["total_tokens"] == 2 * BILLED["total_tokens"]


async def test_a_worker_that_dies_between_steps_costs_a_pause(asking: Asking, record: Path) -> None:
    replies = calls("call_1", "search", query="bees"), says(ending="hang"), says("Bees fly.")
    async with ProviderServer(*replies) as server:
        stream_id = await asking.create()
        async with worker(asking, server, record, "searching") as first:
            await until(lambda: len(server.requests) == 2)
            await asking.saved(stream_id)
            first.signal(signal.SIGKILL)
            await first.ends()
        async with worker(asking, server, record, "searching"):
            found = await asking.end(stream_id)
    assert of(found, "reset") == []
    assert len(of(found, "tool_result")) == 1
    assert (text(found), noted(record)) == ("Bees fly.", "bees\n")


class SlowServer(ProviderServer):
    """Sends the first chunks of its second answer, and the others when `rest` is set."""

    def __init__(self, *replies: Reply) -> None:
        super().__init__(*replies)
        self.rest = asyncio.Event()
        self._frames = 0

    async def send_frame(self, frame: bytes, writer: asyncio.StreamWriter) -> None:
        if len(self.requests) > 1:
            self._frames += 1
            if self._frames > 3:
                await self.rest.wait()
        await super().send_frame(frame, writer)


async def test_a_worker_that_leaves_lets_the_model_end_its_answer(asking: Asking, record: Path) -> None:
    replies = calls("call_1", "search", query="bees"), calls("call_2", "search", query="wasps"), says("Bees fly.")
    async with SlowServer(*replies) as server:
        generator = langgraph.generator(graph_agents.agent(server.url, record))
        leaving = await asking.cluster.worker({"agent": generator}, worker_drain_seconds=600)
        stream_id = await asking.create()
        await asking.has(stream_id, "tool_call", 3)
        leaving.leave()
        [run] = leaving.slots.runs.values()
        await until(lambda: run._handing_over)
        await asking.cluster.worker({"agent": generator})
        server.rest.set()
        found = await asking.end(stream_id)
    assert of(found, "reset") == []
    assert [event["reason"] for event in of(found, "resumed")] == ["worker_left"]
    assert (text(found), noted(record)) == ("Bees fly.", "bees\nwasps\n")


@pytest.mark.parametrize("mode", ["batched", "per_call"])
@pytest.mark.parametrize("approved", [True, False])
async def test_an_approval_waits_without_a_worker(asking: Asking, record: Path, mode: str, approved: bool) -> None:
    async with ProviderServer(calls("call_1", "search", query="bees"), says("Fine.")) as server:
        graph = graph_agents.asks_first(server.url, record, interrupt_mode=mode)
        first = await asking.cluster.worker({"agent": langgraph.generator(graph)})
        stream_id = await asking.create()
        await asking.has(stream_id, "waiting")
        found = await asking.log(stream_id)
        assert of(found, "tool_approval") == [{"type": "tool_approval", "id": "call_1"}]
        assert found[-1]["for"] == {"type": "approval", "calls": ["call_1"]}
        await asking.cluster.kill(first)
        await asking.cluster.worker({"agent": langgraph.generator(graph)})
        await asking.send(stream_id, APPROVAL | {"approved": approved, "reason": None if approved else "No bees."})
        found = await asking.end(stream_id)
    assert text(found) == "Fine."
    assert of(found, "reset") == []
    assert noted(record) == ("bees\n" if approved else "")
    [result] = of(found, "tool_result")
    assert result["result"] == "facts about bees" if approved else "No bees." in result["result"]


async def test_a_killed_worker_asks_for_no_second_approval(asking: Asking, record: Path) -> None:
    replies = calls("call_1", "search", query="bees"), says("Bees sw", ending="hang"), says("Bees fly.")
    async with ProviderServer(*replies) as server:
        stream_id = await asking.create()
        async with worker(asking, server, record, "asking_first") as first:
            await asking.has(stream_id, "waiting")
            await asking.send(stream_id, APPROVAL | {"approved": True, "reason": None})
            await asking.has(stream_id, "text")
            first.signal(signal.SIGKILL)
            await first.ends()
        async with worker(asking, server, record, "asking_first"):
            found = await asking.end(stream_id)
    assert text(found[[event["type"] for event in found].index("reset") :]) == "Bees fly."
    assert len(of(found, "waiting")) == 1
    assert noted(record) == "bees\n"


async def test_all_calls_of_a_turn_need_a_decision(asking: Asking, record: Path) -> None:
    both = calls("call_1", "search", ("call_2", "search", {"query": "wasps"}), query="bees")
    async with ProviderServer(both, says("Fine.")) as server:
        await asking.cluster.worker({"agent": langgraph.generator(graph_agents.asks_first(server.url, record))})
        stream_id = await asking.create()
        await asking.has(stream_id, "waiting")
        await asking.send(stream_id, APPROVAL | {"call_id": "call_2", "approved": True, "reason": None})
        await asking.has(stream_id, "waiting", 2)
        await asking.send(stream_id, APPROVAL | {"approved": False, "reason": None})
        found = await asking.end(stream_id)
    assert [wait["for"]["calls"] for wait in of(found, "waiting")] == [["call_1", "call_2"], ["call_1"]]
    assert len(of(found, "tool_approval")) == 2
    assert noted(record) == "wasps\n"


async def test_an_interrupt_waits_for_any_value(asking: Asking) -> None:
    await asking.cluster.worker({"agent": langgraph.generator(graph_agents.questions())})
    stream_id = await asking.create()
    for number, reply in enumerate(["Oslo", {"date": "Monday"}], 1):
        await asking.has(stream_id, "waiting", number)
        await asking.send(stream_id, reply)
    found = await asking.end(stream_id)
    reasons = [(wait["for"]["type"], wait["for"]["value"]) for wait in of(found, "waiting")]
    assert reasons == [("interrupt", {"question": "Which city?"}), ("interrupt", "Which day?")]
    assert text(found) == "Oslo on {'date': 'Monday'}"


async def test_messages_are_taken_between_the_steps(asking: Asking, record: Path) -> None:
    replies = calls("call_1", "search", query="bees"), says("Bees fly."), says("Wasps, too.")
    async with ProviderServer(*replies) as server:
        await asking.cluster.worker({"agent": langgraph.generator(graph_agents.asks_first(server.url, record))})
        stream_id = await asking.create()
        await asking.has(stream_id, "waiting")
        await asking.send(stream_id, {"type": "message", "message": {"role": "user", "content": "And wasps?"}})
        await asking.has(stream_id, "waiting", 2)
        await asking.send(stream_id, APPROVAL | {"approved": True, "reason": None})
        await asking.end(stream_id)
    said = [(message["role"], message["content"]) for message in server.requests[1].body["messages"]]
    assert said[-2:] == [("tool", "facts about bees"), ("user", "And wasps?")]
    assert len(server.requests) == 2


class Durable(BaseCheckpointSaver[str]):
    """Stands for a database of checkpoints that all workers share."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = InMemorySaver()

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self.kept.get_tuple(config)

    async def aput(self, config: RunnableConfig, checkpoint: Any, metadata: Any, new_versions: Any) -> RunnableConfig:
        return self.kept.put(config, checkpoint, metadata, new_versions)

    async def aput_writes(self, config: RunnableConfig, writes: Any, task_id: str, task_path: str = "") -> None:
        self.kept.put_writes(config, writes, task_id, task_path)


async def test_a_graph_with_a_durable_checkpointer_continues_there(asking: Asking, record: Path) -> None:
    saver = Durable()
    replies = calls("call_1", "search", query="bees"), says("Bees sw", ending="hang"), says("Bees fly.")
    async with ProviderServer(*replies) as server:
        graph = graph_agents.agent(server.url, record).copy({"checkpointer": saver})
        first = await asking.cluster.worker({"agent": langgraph.generator(graph)}, **QUICK)
        stream_id = await asking.create()
        await asking.has(stream_id, "text")
        await asking.cluster.kill(first)
        await asking.cluster.worker({"agent": langgraph.generator(graph)}, **QUICK)
        found = await asking.end(stream_id)
    kinds = [event["type"] for event in found]
    assert kinds[kinds.index("reset") + 1 :] == ["tool_call", "custom", "tool_result", "text", "usage", "done"]
    assert (len(server.requests), noted(record)) == (3, "bees\n")
    assert list(saver.kept.storage) == [str(stream_id)]


async def test_steps_that_only_the_checkpointer_has_are_shown(record: Path) -> None:
    saver, stream_id = Durable(), uuid4()
    replies = calls("call_1", "search", query="bees"), calls("call_2", "search", query="wasps"), says("Bees fly.")
    async with ProviderServer(*replies) as server:
        graph = graph_agents.agent(server.url, record).copy({"checkpointer": saver})
        generate = langgraph.generator(graph)
        states: list[Any] = [e async for e in generate(GenerationRequest(stream_id, "Hi", {})) if is_state(e)]
        shown = [event async for event in generate(GenerationRequest(stream_id, "Hi", {}, state=states[1]["state"]))]
    results = [event["id"] for event in shown if not isinstance(event, str) and event["type"] == "tool_result"]
    assert results == ["call_1", "call_2"]
    assert "Bees fly." in shown
    assert len(server.requests) == 3


async def test_a_state_that_is_too_large_is_not_saved(record: Path) -> None:
    async with ProviderServer(calls("call_1", "search", query="bees"), says("Bees fly.")) as server:
        generate = langgraph.generator(graph_agents.agent(server.url, record), max_state_bytes=1000)
        found = [event async for event in generate(GenerationRequest(uuid4(), "Hi", {}))]
    assert not any(map(is_state, found))
    assert found[-1] == {"type": "finish", "finish_reason": "stop"}


async def test_a_breakpoint_waits_for_any_input(asking: Asking, record: Path) -> None:
    async with ProviderServer(calls("call_1", "search", query="bees"), says("Bees fly.")) as server:
        graph = graph_agents.agent(server.url, record).copy({"interrupt_before_nodes": ["tools"]})
        await asking.cluster.worker({"agent": langgraph.generator(graph)})
        stream_id = await asking.create()
        await asking.has(stream_id, "waiting")
        [wait] = of(await asking.log(stream_id), "waiting")
        await asking.send(stream_id, "Go on.")
        found = await asking.end(stream_id)
    assert wait["for"]["value"] == {"next": ["tools"]}
    assert (text(found), noted(record)) == ("Bees fly.", "bees\n")


async def test_a_graph_that_takes_too_many_steps_ends_by_that_name(asking: Asking, record: Path) -> None:
    async with ProviderServer(calls("call_1", "search", query="bees")) as server:
        graph = graph_agents.agent(server.url, record)
        found = await asking.answer(langgraph.generator(graph, config={"recursion_limit": 3}))
    assert (found[-1]["status"], found[-1]["error"]["code"]) == ("failed", "max_turns")
