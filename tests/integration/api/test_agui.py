"""AG-UI over HTTP: runs, their replays, and the answers to their interrupts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import httpx2
import pytest
from tests.support.access import bearer, guarded_pod, make_key
from tests.support.cluster import Cluster, RunningPod, Tap

import baton
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded

USER = {"id": "u", "role": "user", "content": "Hello"}
CALL = {"type": "tool_call", "index": 0, "id": "c", "name": "delete", "arguments_delta": "{}"}
GOT: list[Any] = []


@baton.continues
async def careful(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Ask about a call, wait, and then for anything else, and wait."""
    yield {"type": "continue", "after": request.so_far.seq}
    got = None
    while (answer := await request.receive(0)) is not None:
        got = answer
    GOT.append(got)
    if request.run == 1:
        yield "May I?"
        yield CALL
        yield {"type": "tool_approval", "id": "c"}
        yield {"type": "wait", "for": {"type": "approval", "calls": ["c"]}}
    elif request.run == 2:
        yield {"type": "tool_result", "id": "c", "result": "gone"}
        yield {"type": "wait", "for": {"type": "message"}}
    else:
        yield "Done."


async def asking(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Ask about a call, and end."""
    GOT.append(request)
    if request.approvals:
        yield {"type": "tool_result", "id": "c", "result": "gone"}
        yield "Done."
    else:
        yield CALL
        yield {"type": "tool_approval", "id": "c"}


class Client:
    """A client of AG-UI on a pod."""

    def __init__(self, cluster: Cluster, pod: RunningPod, generator: str) -> None:
        self._client = cluster.client
        self.url = f"{pod.url}/v1/ag-ui/{generator}"

    async def post(self, run: str, path: str = "", messages: Any = (USER,), **fields: Any) -> httpx2.Response:
        body = {"threadId": "t", "runId": run, "messages": list(messages), **fields}
        return await self._client.post(self.url + path, json=body)

    async def run(self, run: str, path: str = "", **fields: Any) -> list[dict[str, Any]]:
        answer = await self.post(run, path, **fields)
        assert answer.status_code == 200, answer.text
        return events(answer)

    async def connect(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        return await self.run("new", f"/runs/{name}/connect", **fields)


def events(answer: httpx2.Response) -> list[dict[str, Any]]:
    blocks = answer.text.replace(":\n", "").split("\n\n")
    return [json.loads(block.removeprefix("data: ")) for block in blocks if block]


def said(found: list[dict[str, Any]]) -> str:
    return "".join(event["delta"] for event in found if event["type"] == "TEXT_MESSAGE_CONTENT")


def interrupts(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    assert found[-1]["outcome"]["type"] == "interrupt"
    return list(found[-1]["outcome"]["interrupts"])


def resume(found: list[dict[str, Any]], payload: Any) -> list[dict[str, Any]]:
    return [{"interruptId": one["id"], "status": "resolved", "payload": payload} for one in interrupts(found)]


async def test_a_run_is_one_stream_whichever_request_names_it(cluster: Cluster) -> None:
    one, two = [Client(cluster, await cluster.pod(), "tap") for _ in range(2)]
    tap = Tap()
    await cluster.worker({"tap": tap}, flush_interval_milliseconds=5)
    tools = [{"name": "f", "description": "d"}]
    first = asyncio.create_task(one.run("r1", tools=tools, context=[], state={"n": 1}, forwardedProps={"x": 2}))
    await tap.started.wait()
    assert json.loads(await cluster.pool.fetchval("SELECT metadata FROM baton.stream")) == {"chat": "t"}
    stream_id: UUID = await cluster.pool.fetchval("SELECT id FROM baton.stream")
    tap.let("a", "b")
    has = [USER, {"id": f"msg_{stream_id.hex}", "role": "assistant", "content": "a"}]
    names = ("r1", str(stream_id), f"run_{stream_id.hex}")
    replays = [asyncio.create_task(two.run(name, messages=has)) for name in names]
    joined = [asyncio.create_task(two.connect(name)) for name in (*names, "t")]
    tap.end()
    live = await first
    assert said(live) == "ab"
    for replay in await asyncio.gather(*replays, *joined):
        assert replay[:2] == [live[0], {"type": "MESSAGES_SNAPSHOT", "messages": [USER]}]
        assert replay[2:] == live[1:]
    given = json.loads(await cluster.pool.fetchval("SELECT convert_from(input, 'UTF8') FROM baton.stream"))
    assert given == {"messages": [USER], "tools": tools, "context": [], "state": {"n": 1}, "forwardedProps": {"x": 2}}
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 1
    assert await two.connect("nothing") == []
    other = await two._client.post(two.url, json={"threadId": "t2", "runId": "r1", "messages": [USER]})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")


async def test_the_conversation_has_the_turns_of_both_doors(cluster: Cluster) -> None:
    pod = await cluster.pod()
    tap = Tap()
    await cluster.worker({"tap": tap}, flush_interval_milliseconds=5)
    client = Client(cluster, pod, "tap")
    tap.let("Hi!")
    tap.end()
    tap.end()
    live = await client.run("r1")
    answer = {"id": live[1]["messageId"], "role": "assistant", "content": "Hi!"}
    await client.run("r2", messages=[USER, answer, {"id": "v", "role": "user", "content": "And?"}])
    page = (await cluster.client.get(f"{pod.url}/v1/conversations/t?form=aisdk")).json()["messages"]
    assert [one["id"] for one in page[:3]] == ["u", answer["id"], "v"]
    assert page[1]["metadata"]["status"] == "completed"


async def test_the_answers_to_a_waiting_run_are_inputs(cluster: Cluster) -> None:
    one, two = [Client(cluster, await cluster.pod(), "careful") for _ in range(2)]
    await cluster.worker({"careful": careful})
    GOT.clear()
    asked = await one.run("r1")
    (question,) = interrupts(asked)
    assert (question["reason"], question["toolCallId"]) == ("tool_call", "c")
    assert await cluster.pool.fetchval("SELECT status FROM baton.stream") == "waiting"
    # A reloaded page sees the question.
    assert interrupts(await two.connect("t")) == [question]
    decided = resume(asked, {"approved": True})
    then = await two.run("r2", resume=decided)
    assert [event["type"] for event in then] == ["RUN_STARTED", "TOOL_CALL_RESULT", "RUN_FINISHED"]
    assert GOT[1] == {"type": "approval", "call_id": "c", "approved": True, "reason": None}
    assert (await one.run("r2", resume=decided))[1:] == then[1:]
    refused = await one.post("r9", resume=resume(asked, {"approved": False}))
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_conflict")
    large = await one.post("r8", resume=resume(then, "x" * 1_100_000))
    assert (large.status_code, large.json()["code"]) == (413, "message_too_large")
    last = await one.run("r3", resume=resume(then, "Go on."))
    assert (said(last), last[-1].get("outcome")) == ("Done.", None)
    assert GOT[2] == {"type": "message", "message": {"role": "user", "content": "Go on."}}
    whole = await two.connect("t")
    assert whole[2:] == [*asked[1:-1], *then[1:-1], *last[1:]]
    late = await one.post("r4", resume=decided)
    assert late.status_code == 422


@pytest.mark.parametrize("approved", [True, False])
async def test_the_answer_to_a_run_that_has_ended_is_another_stream(cluster: Cluster, approved: bool) -> None:
    client = Client(cluster, await cluster.pod(), "asking")
    await cluster.worker({"asking": asking})
    GOT.clear()
    asked = await client.run("r1")
    call = {"id": "c", "type": "function", "function": {"name": "delete", "arguments": "{}"}}
    has = [USER, {"id": asked[1]["parentMessageId"], "role": "assistant", "toolCalls": [call]}]
    entries = resume(asked, {"approved": approved, "reason": "why"})
    answer = await client.run("r2", messages=has, resume=entries)
    assert await client.run("r2", messages=has, resume=entries) != []
    assert len(GOT) == 2
    request = GOT[1]
    assert [approval.call_id for approval in request.approvals] == (["c"] if approved else [])
    if approved:
        assert [event["type"] for event in answer][1] == "TOOL_CALL_RESULT"
    else:
        assert request.input["messages"][-1]["content"] == "Error: the user did not allow this call: why"


async def test_a_run_is_stopped_by_its_thread(cluster: Cluster) -> None:
    client = Client(cluster, await cluster.pod(), "tap")
    tap = Tap()
    await cluster.worker({"tap": tap}, flush_interval_milliseconds=5)
    running = asyncio.create_task(client.run("r1"))
    await tap.started.wait()
    assert (await client._client.post(f"{client.url}/runs/t/stop")).status_code == 202
    assert (await running)[-1]["outcome"] == {"type": "cancelled"}
    assert (await client._client.post(f"{client.url}/runs/r1/stop")).status_code == 204


@pytest.mark.parametrize(
    "entries",
    [
        [{"interruptId": "x", "status": "resolved"}],
        [{"interruptId": f"interrupt_{'0' * 32}.0.0", "status": "resolved"}],
        [{"interruptId": f"interrupt_{'0' * 32}.1.{n}", "status": "resolved"} for n in (1, 1)],
        [{"interruptId": f"interrupt_{n * 32}.1.1", "status": "resolved"} for n in "01"],
    ],
)
async def test_an_answer_to_no_question_is_refused(cluster: Cluster, entries: list[dict[str, Any]]) -> None:
    client = Client(cluster, await cluster.pod(), "careful")
    answer = await client.post("r1", resume=entries)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


async def test_who_may_not_read_gets_no_run_of_somebody_else(cluster: Cluster) -> None:
    _, reading = await make_key(cluster, "create", "read")
    _, creating = await make_key(cluster, "create")
    pod = await guarded_pod(cluster)
    await cluster.worker({"careful": careful})

    async def send(credential: str, run: str, text: str) -> httpx2.Response:
        body = {"threadId": "t", "runId": run, "messages": [USER | {"content": text}]}
        return await cluster.client.post(f"{pod.url}/v1/ag-ui/careful", json=body, headers=bearer(credential))

    assert (await send(reading, "r", "my secret")).status_code == 200
    assert "my secret" in (await send(reading, "r", "again")).text
    refused = await send(creating, "r", "what did they say?")
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert (await send(creating, "mine", "Hello")).status_code == 200
