"""Requests of the AI SDK that end with an assistant's message: results of the page's tools, and answers of the user."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import httpx2
import pytest
from tests.support.cluster import Cluster, RunningPod, Tap, echo

from baton.generators import Approval, GenerationRequest
from baton.generators.protocol import Yielded
from baton.generators.replay import ReplayGenerator

CHAT = "/v1/ai-sdk/chat"
USER = {"id": "u", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}
CALL = {"type": "tool_call", "index": 0, "id": "c", "name": "weather", "arguments_delta": '{"city":"Oslo"}'}
PART = {"type": "tool-weather", "toolCallId": "c", "state": "output-available", "input": {}, "output": 3}


def assistant(*parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"id": "msg_1", "role": "assistant", "parts": [{"type": "step-start"}, *parts], **fields}


def sent(*messages: dict[str, Any], chat: str = "42", **fields: Any) -> dict[str, Any]:
    return {"id": chat, "messages": [USER, *messages], "trigger": "submit-message", **fields}


def chunks(body: bytes) -> list[dict[str, Any]]:
    found = [frame.removeprefix(b"data: ") for frame in body.split(b"\n\n") if frame.startswith(b"data: {")]
    return [json.loads(frame) for frame in found]


async def test_a_message_is_continued_live_and_replayed_whole_on_every_pod(cluster: Cluster) -> None:
    one, two = await cluster.pod(), await cluster.pod()
    tap = Tap()
    await cluster.worker({"replay": tap})
    body = sent(assistant({"type": "reasoning", "text": "hm"}, PART, metadata={"status": "completed"}))
    sending = asyncio.create_task(cluster.client.post(f"{one.url}{CHAT}", json=body))
    await tap.started.wait()
    tap.let("a", "b")
    async with cluster.client.stream("GET", f"{two.url}{CHAT}/42/stream") as resumed:
        tap.end()
        replay = chunks(await resumed.aread())
    answer = await sending
    live = chunks(answer.content)
    new = ["start-step", "text-start", "text-delta", "text-delta", "text-end", "finish-step", "finish"]
    assert [chunk["type"] for chunk in live] == ["start", *new]
    assert live[0]["messageId"] == replay[0]["messageId"] == "msg_1"
    earlier = ["reasoning-start", "reasoning-delta", "reasoning-end", "tool-input-start", "tool-input-delta"]
    old = ["start-step", *earlier, "tool-output-available"]
    assert [chunk["type"] for chunk in replay] == ["start", *old, *new]
    run = answer.headers["x-workflow-run-id"]
    for place, whole, more in ((run, live, ""), ("42", replay, ""), (run, replay, "&replay=true")):
        for pod in (one, two):
            for index in range(len(whole) + 1):
                rest = await cluster.client.get(f"{pod.url}{CHAT}/{place}/stream?startIndex={index}{more}")
                # A client that has everything is sent the end again.
                assert chunks(rest.content) == (whole[index:] or whole[-1:])
            back = await cluster.client.get(f"{pod.url}{CHAT}/{place}/stream?startIndex=-1{more}")
            # It begins where the last part opens, and the header leads the client to that index.
            shown = chunks(back.content)
            assert shown == whole[-len(shown) :]
            assert {chunk["type"] for chunk in shown} >= {"text-start", "text-delta", "finish"}
            assert back.headers["x-workflow-stream-tail-index"] == str(len(whole) - len(shown))
    refused = await cluster.client.get(f"{one.url}{CHAT}/{run}/stream?replay=yes")
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")
    row = await cluster.pool.fetchval("SELECT input FROM baton.stream WHERE id = $1", UUID(run.removeprefix("run_")))
    assert json.loads(row) == {
        "messages": [
            {"role": "user", "content": "Hello"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c", "content": "3"},
        ]
    }


async def test_a_continued_message_counts_as_input_and_must_be_complete(cluster: Cluster) -> None:
    pod = await cluster.pod(max_input_bytes=1000)
    await cluster.worker({"replay": echo})
    large = await cluster.client.post(f"{pod.url}{CHAT}", json=sent(assistant({"type": "data-x", "data": "x" * 1000})))
    assert large.status_code == 413
    broken = await cluster.client.post(f"{pod.url}{CHAT}", json=sent(assistant({"type": "reasoning"})))
    assert broken.status_code == 400
    assert broken.json()["detail"] == "The last message is malformed: a part lacks a field."
    nameless = await cluster.client.post(f"{pod.url}{CHAT}", json=sent(assistant(PART, id=7)))
    assert chunks(nameless.content)[0]["messageId"].startswith("msg_0")


# --- approvals


async def asking(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Ask about a call, and run those that are allowed."""
    SEEN.append(request)
    for approval in request.approvals:
        yield {"type": "tool_result", "id": approval.call_id, "result": f"{approval.name} of {approval.arguments}"}
    if request.approvals or any(message["role"] == "tool" for message in request.input["messages"]):
        yield "Done."
        return
    yield CALL
    yield {"type": "tool_approval", "id": "c"}


SEEN: list[GenerationRequest] = []


async def asked(cluster: Cluster, pod: RunningPod, chat: str = "42") -> str:
    """Have a stream ask; return the id of the approval."""
    SEEN.clear()
    answer = await cluster.client.post(f"{pod.url}{CHAT}", json=sent(chat=chat, model="asking"))
    found = chunks(answer.content)
    (request,) = [chunk for chunk in found if chunk["type"] == "tool-approval-request"]
    assert found[found.index(request) - 1]["providerExecuted"]
    approval_id: str = request["approvalId"]
    return approval_id


def answered(approval_id: Any, approved: Any, **fields: Any) -> dict[str, Any]:
    """The part of a page whose user has answered; the page lies about the call."""
    part = {"type": "tool-delete", "toolCallId": "c", "state": "approval-responded", "input": {"city": "Rome"}}
    return part | {"approval": {"id": approval_id, "approved": approved}} | fields


async def test_the_generator_runs_an_approved_call_as_logged(cluster: Cluster) -> None:
    pod, other = await cluster.pod(), await cluster.pod()
    await cluster.worker({"asking": asking})
    approval_id = await asked(cluster, pod)
    body = sent(assistant(answered(approval_id, True)), model="asking")
    answer = await cluster.client.post(f"{other.url}{CHAT}", json=body)
    assert SEEN[-1].approvals == (Approval(approval_id, "c", "weather", {"city": "Oslo"}),)
    (call,) = SEEN[-1].input["messages"][-1]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city":"Oslo"}'}
    output = {"type": "tool-output-available", "toolCallId": "c", "providerExecuted": True}
    live = chunks(answer.content)
    assert live[2] == output | {"output": "weather of {'city': 'Oslo'}"}
    replay = chunks((await cluster.client.get(f"{pod.url}{CHAT}/42/stream?startIndex=0")).content)
    assert [chunk.get("toolName") for chunk in replay if chunk["type"] == "tool-input-start"] == ["weather"]
    assert not [chunk for chunk in replay if "approval" in chunk["type"]]
    assert replay[-len(live) + 1 :] == live[1:]


async def test_an_approved_call_is_run_once(cluster: Cluster) -> None:
    pod, other = await cluster.pod(), await cluster.pod()
    await cluster.worker({"asking": asking})
    approval_id = await asked(cluster, pod)
    body = sent(assistant(answered(approval_id, True)), model="asking")
    answers = await asyncio.gather(
        *(cluster.client.post(f"{place.url}{CHAT}", json=body | {"x": place.url}) for place in (pod, other, pod))
    )
    assert len({answer.headers["x-workflow-run-id"] for answer in answers}) == 1
    assert len(SEEN) == 2


async def asking_twice(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Ask about two calls in one step."""
    SEEN.append(request)
    if request.approvals:
        yield "Done."
        return
    for index, call_id in enumerate("cd"):
        yield {**CALL, "index": index, "id": call_id}
    for call_id in "cd":
        yield {"type": "tool_approval", "id": call_id}


@pytest.mark.parametrize("then", [{"c": True, "d": True}, {"c": True, "d": False}, {"c": False}])
async def test_an_answered_question_is_not_answered_again(cluster: Cluster, then: dict[str, bool]) -> None:
    pod = await cluster.pod()
    await cluster.worker({"asking": asking_twice})
    SEEN.clear()
    asking_answer = await cluster.client.post(f"{pod.url}{CHAT}", json=sent(model="asking"))
    asked_for = {
        chunk["toolCallId"]: chunk["approvalId"]
        for chunk in chunks(asking_answer.content)
        if chunk["type"] == "tool-approval-request"
    }

    async def send(decided: dict[str, bool]) -> httpx2.Response:
        parts = [answered(asked_for[call_id], yes, toolCallId=call_id) for call_id, yes in decided.items()]
        return await cluster.client.post(f"{pod.url}{CHAT}", json=sent(assistant(*parts), model="asking"))

    assert (await send({"c": True})).status_code == 200
    refused = await send(then)
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_conflict")
    assert (
        refused.json()["detail"] == "Another request has answered one of these approvals before. Load the chat again."
    )
    assert (await send({"d": True})).status_code == 200
    assert [[approval.call_id for approval in request.approvals] for request in SEEN] == [[], ["c"], ["d"]]


async def test_a_denied_call_becomes_a_result(cluster: Cluster) -> None:
    pod = await cluster.pod()
    await cluster.worker({"asking": asking, "replay": echo})
    approval_id = await asked(cluster, pod)
    body = sent(assistant(answered(approval_id, False)), model="asking")
    body["messages"][1]["parts"][1]["approval"]["reason"] = "too far"
    answer = await cluster.client.post(f"{pod.url}{CHAT}", json=body)
    assert SEEN[-1].approvals == ()
    assert SEEN[-1].input["messages"][-1] == {
        "role": "tool",
        "tool_call_id": "c",
        "content": "Error: the user did not allow this call: too far",
    }
    assert [chunk["type"] for chunk in chunks(answer.content)][:3] == ["start", "tool-output-denied", "start-step"]
    # A generator that runs no tools can be given that too.
    assert (await cluster.client.post(f"{pod.url}{CHAT}", json=body | {"model": "replay"})).status_code == 200


@pytest.mark.parametrize(
    ("approval_id", "approved", "chat", "sentence"),
    [
        ("1", True, "42", "waits for the approval '1'"),
        (f"approval_{'0' * 32}_c", True, "42", "waits for the approval"),
        ("{}x", True, "42", "waits for the approval"),
        ("{}", True, "another", "waits for the approval"),
        ("{}", "yes", "42", "whether the call is approved"),
        (7, True, "42", "An approval needs an id"),
        (7, False, "42", "An approval needs an id"),
        ("1", False, "42", "waits for the approval '1'"),
    ],
)
async def test_an_answer_to_an_unasked_question_is_refused(
    cluster: Cluster, approval_id: Any, approved: Any, chat: str, sentence: str
) -> None:
    pod = await cluster.pod()
    await cluster.worker({"asking": asking})
    known = await asked(cluster, pod)
    given = approval_id.format(known) if isinstance(approval_id, str) else approval_id
    body = sent(assistant(answered(given, approved)), chat=chat, model="asking")
    answer = await cluster.client.post(f"{pod.url}{CHAT}", json=body)
    assert answer.status_code == 400
    assert sentence in answer.json()["detail"]
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 1


async def test_a_message_with_too_many_answers_is_refused(cluster: Cluster) -> None:
    pod = await cluster.pod()
    await cluster.worker({"asking": asking})
    part = answered(await asked(cluster, pod), True)
    body = sent(assistant(*[part] * 33), model="asking")
    answer = await cluster.client.post(f"{pod.url}{CHAT}", json=body)
    assert (answer.status_code, answer.json()["detail"]) == (400, "A message may hold at most 32 answered approvals.")


@pytest.mark.parametrize("twice", [{}, {"toolCallId": "d"}, {"state": "output-available", "output": 3}])
async def test_a_message_cannot_answer_a_question_twice(cluster: Cluster, twice: dict[str, Any]) -> None:
    pod = await cluster.pod()
    await cluster.worker({"asking": asking})
    part = answered(await asked(cluster, pod), True)
    for first, second in ((part, part | twice), (part | twice, part)):
        body = sent(assistant(first, second), model="asking")
        answer = await cluster.client.post(f"{pod.url}{CHAT}", json=body)
        assert answer.status_code == 400
        assert "answer each approval" in answer.json()["detail"]
    assert len(SEEN) == 1


async def test_an_answer_that_the_generator_did_not_ask_for_is_refused(cluster: Cluster) -> None:
    async def running(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield CALL
        yield {"type": "tool_call", "index": 1, "id": "d", "name": "f", "arguments_delta": "{"}
        yield {"type": "tool_approval", "id": "d"}

    pod = await cluster.pod()
    await cluster.worker({"running": running})
    first = await cluster.client.post(f"{pod.url}{CHAT}", json=sent(model="running"))
    run = first.headers["x-workflow-run-id"].removeprefix("run_")
    for call in ("c", "d"):
        body = sent(assistant(answered(f"approval_{run}_{call}", True)), model="running")
        assert (await cluster.client.post(f"{pod.url}{CHAT}", json=body)).status_code == 400


async def test_a_generator_that_runs_no_tools_refuses_an_approved_call_by_name(cluster: Cluster) -> None:
    pod = await cluster.pod(models={"fast": {"generator": "replay"}})
    await cluster.worker({"asking": asking})
    approval_id = await asked(cluster, pod)
    for name in ("replay", "fast", None):
        body = sent(assistant(answered(approval_id, True)), model=name)
        answer = await cluster.client.post(f"{pod.url}{CHAT}", json=body)
        assert answer.status_code == 400
        assert f"The generator '{name or 'replay'}' runs no tools" in answer.json()["detail"]


async def test_a_worker_refuses_calls_that_its_generator_cannot_run(cluster: Cluster) -> None:
    """A pod may not know that a name is one of a built-in generator."""
    pod = await cluster.pod()
    await cluster.worker({"asking": asking, "fast": ReplayGenerator(cluster.settings())})
    approval_id = await asked(cluster, pod)
    body = sent(assistant(answered(approval_id, True)), model="fast")
    answer = await cluster.client.post(f"{pod.url}{CHAT}", json=body)
    (error,) = [chunk for chunk in chunks(answer.content) if chunk["type"] == "error"]
    assert "runs no tools" in error["errorText"]


async def test_a_call_approved_long_ago_is_not_run(cluster: Cluster) -> None:
    pod = await cluster.pod()
    await cluster.worker({"asking": asking})
    await asked(cluster, pod)
    body = sent(assistant(answered("gone", True)), {**USER, "id": "u2"}, model="asking")
    answer = await cluster.client.post(f"{pod.url}{CHAT}", json=body)
    assert answer.status_code == 200
    assert SEEN[-1].approvals == ()
    assert SEEN[-1].input["messages"][2]["content"] == "Error: the user allowed this call, but it has no result."
