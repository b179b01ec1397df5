"""Pages of the AI SDK that send their last message only: the model is asked as if they had sent all of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import httpx2
import pytest
from tests.support.access import bearer, guarded_pod, make_key
from tests.support.cluster import Cluster, RunningPod

from baton.db import retention
from baton.errors import GenerationError
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded

CHAT = "/v1/ai-sdk/chat"
CALL = {"type": "tool_call", "index": 0, "id": "c", "name": "weather", "arguments_delta": '{"city":"Oslo"}'}
CHAT_CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}


class Model:
    """A generator that answers by the last message, and keeps what it was asked with."""

    def __init__(self) -> None:
        self.inputs: list[Any] = []
        self.begun = asyncio.Semaphore(0)
        self.rest = asyncio.Event()

    async def __call__(self, request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        self.inputs.append(request.input)
        last = request.input["messages"][-1]
        said = last["content"]
        for approval in request.approvals:
            yield {"type": "tool_result", "id": approval.call_id, "result": approval.arguments}
        if last["role"] == "tool" or request.approvals:
            yield "It is cold."
        elif said == "Call.":
            yield "Hm. "
            yield CALL
            yield {"type": "finish", "finish_reason": "tool_calls"}
        elif said == "Run.":
            yield CALL
            yield {"type": "tool_result", "id": "c", "result": 3}
            yield "Three."
        elif said == "Ask.":
            yield CALL
            yield {"type": "tool_approval", "id": "c"}
        elif said == "Fail.":
            yield "So far"
            yield CALL | {"arguments_delta": '{"city":"Os'}
            raise GenerationError("tired", "No more.")
        elif said == "Wait.":
            yield "Half"
            self.begun.release()
            await self.rest.wait()
        else:
            yield f"You said {said}"


@pytest.fixture
async def model(cluster: Cluster) -> Model:
    made = Model()
    await cluster.worker({"replay": made, "asking": made})
    return made


@pytest.fixture
async def pods(cluster: Cluster) -> tuple[RunningPod, RunningPod]:
    return await cluster.pod(), await cluster.pod()


def user(text: str, message_id: str | None = None) -> dict[str, Any]:
    return {"id": message_id or f"u-{text}", "role": "user", "parts": [{"type": "text", "text": text}]}


def asked(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str | None) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


async def send(cluster: Cluster, pod: RunningPod, chat: str = "42", **fields: Any) -> httpx2.Response:
    return await cluster.client.post(f"{pod.url}{CHAT}", json={"id": chat, **fields})


def answer_of(answer: httpx2.Response) -> str:
    """The id that an answer has on the page."""
    assert answer.status_code == 200, answer.text
    start = json.loads(answer.text.partition("\n")[0].removeprefix("data: "))
    message_id: str = start["messageId"]
    return message_id


def refused(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


async def count(cluster: Cluster) -> int:
    streams: int = await cluster.pool.fetchval("SELECT count(*) FROM baton.stream")
    return streams


async def test_a_single_message_is_appended_to_the_conversation_on_any_pod(
    cluster: Cluster, model: Model, pods: tuple[RunningPod, RunningPod]
) -> None:
    one, two = pods
    for pod, text in ((one, "A"), (two, "Run."), (one, "Fail."), (two, "B")):
        answer_of(await send(cluster, pod, message=user(text), temperature=0))
    broken = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Os"}'}}
    assert model.inputs[-1] == {
        "messages": [
            asked("A"),
            said("You said A"),
            asked("Run."),
            said(None) | {"tool_calls": [CHAT_CALL]},
            {"role": "tool", "tool_call_id": "c", "content": "3"},
            said("Three."),
            asked("Fail."),
            said("So far") | {"tool_calls": [broken]},
            {"role": "tool", "tool_call_id": "c", "content": "Error: this call was broken off."},
            asked("B"),
        ],
        "temperature": 0,
    }
    assert [len(given["messages"]) for given in model.inputs] == [1, 3, 7, 10]


async def test_a_single_message_continues_a_conversation_sent_in_full(
    cluster: Cluster, model: Model, pods: tuple[RunningPod, RunningPod]
) -> None:
    one, two = pods
    first = answer_of(await send(cluster, one, messages=[user("A")]))
    message = {"id": first, "role": "assistant", "parts": [{"type": "text", "text": "You said A"}]}
    answer_of(await send(cluster, one, messages=[user("A"), message, user("B")]))
    answer_of(await send(cluster, two, message=user("C")))
    whole = [asked("A"), said("You said A"), asked("B"), said("You said B"), asked("C")]
    assert model.inputs[-1] == {"messages": whole}
    # And what was sent whole can be answered again, from any answer on.
    answer_of(await send(cluster, two, trigger="regenerate-message", messageId=first))
    assert model.inputs[-1] == {"messages": [asked("A")]}


async def test_an_answer_is_removed_with_all_later_messages_and_regenerated(
    cluster: Cluster, model: Model, pods: tuple[RunningPod, RunningPod]
) -> None:
    one, two = pods
    ids = [answer_of(await send(cluster, one, message=user(text))) for text in "ABC"]
    again = {"trigger": "regenerate-message"}
    answer_of(await send(cluster, two, **again))
    assert model.inputs[-1]["messages"][-2:] == [said("You said B"), asked("C")]
    assert len(model.inputs[-1]["messages"]) == 5
    second = answer_of(await send(cluster, two, **again, messageId=ids[1]))
    assert model.inputs[-1]["messages"] == [asked("A"), said("You said A"), asked("B")]
    # What was taken back is none of the conversation any more.
    assert refused(await send(cluster, one, **again, messageId=ids[2])) == (409, "conversation_changed")
    answer_of(await send(cluster, one, **again, messageId="u-A"))
    assert model.inputs[-1]["messages"] == [asked("A")]
    assert refused(await send(cluster, one, **again, messageId=second)) == (409, "conversation_changed")
    # A page without the trigger sends the question again; one whose user has changed it, that in its place.
    answer_of(await send(cluster, one, message=user("A")))
    assert model.inputs[-1]["messages"] == [asked("A")]
    answer_of(await send(cluster, one, message=user("D", "u-A")))
    assert model.inputs[-1]["messages"] == [asked("D")]


async def test_a_message_with_the_pages_results_replaces_the_answer(
    cluster: Cluster, model: Model, pods: tuple[RunningPod, RunningPod]
) -> None:
    one, two = pods
    answer_of(await send(cluster, one, message=user("A")))
    message_id = answer_of(await send(cluster, one, message=user("Call.")))
    part = {"type": "tool-weather", "toolCallId": "c", "state": "output-available", "input": {"city": "Oslo"}}
    parts = [{"type": "step-start"}, {"type": "text", "text": "Hm. "}, part | {"output": 3}]
    message = {"id": message_id, "role": "assistant", "parts": parts}
    assert answer_of(await send(cluster, two, message=message)) == message_id
    before = [asked("A"), said("You said A"), asked("Call.")]
    called = [said("Hm. ") | {"tool_calls": [CHAT_CALL]}, {"role": "tool", "tool_call_id": "c", "content": "3"}]
    assert model.inputs[-1]["messages"] == [*before, *called]
    # The same from another tab, on another pod: the stream that there is.
    created = await count(cluster)
    assert answer_of(await send(cluster, one, message=message)) == message_id
    assert await count(cluster) == created
    answer_of(await send(cluster, one, message=user("B")))
    assert model.inputs[-1]["messages"] == [*before, *called, said("It is cold."), asked("B")]
    # A tab that was left behind cannot go on in the middle.
    assert refused(await send(cluster, one, message=message)) == (409, "conversation_changed")
    # Both streams of that answer are taken back.
    answer_of(await send(cluster, two, trigger="regenerate-message", messageId=message_id))
    assert model.inputs[-1]["messages"] == before


async def test_two_tabs_that_continue_at_once_get_one_stream(
    cluster: Cluster, model: Model, pods: tuple[RunningPod, RunningPod]
) -> None:
    message_id = answer_of(await send(cluster, pods[0], message=user("Call.")))
    part = {"type": "tool-weather", "toolCallId": "c", "state": "output-available", "input": {}, "output": 3}
    message = {"id": message_id, "role": "assistant", "parts": [part]}
    answers = await asyncio.gather(*(send(cluster, pods[number % 2], message=message) for number in range(6)))
    assert len({answer.headers["x-workflow-run-id"] for answer in answers}) == 1
    assert len({answer.content for answer in answers}) == 1
    assert len(model.inputs) == 2
    # Of different messages one wins, and the others are refused.
    texts = [f"Tab {number}" for number in range(4)]
    answers = await asyncio.gather(*(send(cluster, pods[0], message=user(text)) for text in texts))
    won = [answer for answer in answers if answer.status_code == 200]
    assert {refused(answer) for answer in answers if answer not in won} <= {(409, "answer_running")}
    lengths = [len(given["messages"]) for given in model.inputs[2:]]
    assert lengths == [3 + 2 * number for number in range(1, len(won) + 1)]


async def test_two_tabs_that_start_a_chat_at_once_get_one_stream(
    cluster: Cluster, model: Model, pods: tuple[RunningPod, RunningPod]
) -> None:
    answers = await asyncio.gather(*(send(cluster, pod, message=user("A")) for pod in pods))
    assert len({answer_of(answer) for answer in answers}) == len(model.inputs) == 1


async def test_a_repeated_request_gets_the_answer_that_it_created(
    cluster: Cluster, model: Model, pods: tuple[RunningPod, RunningPod]
) -> None:
    turns: list[dict[str, Any]] = [{"message": user("A")}, {"message": user("B")}, {"trigger": "regenerate-message"}]
    for number, fields in enumerate(turns):
        found = set()
        for pod, key in ((pods[0], "k"), (pods[1], "k"), (pods[0], "other")):
            keyed = {"idempotency-key": f"{key}{number}"}
            answer = await cluster.client.post(f"{pod.url}{CHAT}", json={"id": "42", **fields}, headers=keyed)
            found.add(answer_of(answer))
        # The answer had ended before the request was repeated. Another request asks for another answer.
        assert len(found) == 2
    assert await count(cluster) == len(model.inputs) == 6


async def test_approvals_are_accepted_with_a_single_message(
    cluster: Cluster, model: Model, pods: tuple[RunningPod, RunningPod]
) -> None:
    asking = await send(cluster, pods[0], message=user("Ask."))
    message_id = answer_of(asking)
    approval = {"id": f"approval_{message_id.removeprefix('msg_')}_c", "approved": True}
    part = {"type": "tool-weather", "toolCallId": "c", "state": "approval-responded", "approval": approval}
    message = {"id": message_id, "role": "assistant", "parts": [{"type": "step-start"}, part]}
    answers = await asyncio.gather(*(send(cluster, pod, message=message, model="asking") for pod in pods))
    assert len({answer.headers["x-workflow-run-id"] for answer in answers}) == 1
    assert len(model.inputs) == 2
    answer_of(await send(cluster, pods[1], message=user("B")))
    result = {"role": "tool", "tool_call_id": "c", "content": '{"city":"Oslo"}'}
    called = said(None) | {"tool_calls": [CHAT_CALL]}
    assert model.inputs[-1]["messages"] == [asked("Ask."), called, result, said("It is cold."), asked("B")]


async def test_a_message_waits_for_a_stopping_answer_and_not_for_a_running_one(
    cluster: Cluster, model: Model, pods: tuple[RunningPod, RunningPod]
) -> None:
    one, two = pods
    running = asyncio.create_task(send(cluster, one, message=user("Wait.")))
    await model.begun.acquire()
    assert refused(await send(cluster, two, message=user("B"))) == (409, "answer_running")
    assert refused(await send(cluster, two, trigger="regenerate-message")) == (409, "answer_running")
    # The same message, whose answer the page has lost, gets that answer.
    body = {"id": "42", "message": user("Wait.")}
    async with cluster.client.stream("POST", f"{two.url}{CHAT}", json=body) as again:
        stop = await cluster.client.post(f"{two.url}{CHAT}/42/stop")
        assert stop.status_code == 202
        answer_of(await send(cluster, two, message=user("B")))
        assert model.inputs[-1]["messages"] == [asked("Wait."), said("Half"), asked("B")]
        await again.aread()
    assert answer_of(again) == answer_of(await running)


async def test_a_missing_conversation_is_refused_with_its_code(
    cluster: Cluster, model: Model, pods: tuple[RunningPod, RunningPod]
) -> None:
    one, two = pods
    first = answer_of(await send(cluster, one, message=user("A")))
    second = answer_of(await send(cluster, one, message=user("B")))
    # A message that says what precedes it is told when that is not the end.
    answer_of(await send(cluster, two, message=user("C"), previousMessageId=second))
    assert refused(await send(cluster, two, message=user("D"), previousMessageId=first)) == (
        409,
        "conversation_changed",
    )
    for message_id in (first, second):
        stream_id = UUID(message_id.removeprefix("msg_"))
        await cluster.client.delete(f"{two.url}/v1/streams/{stream_id}")
        assert refused(await send(cluster, one, message=user("D"))) == (410, "conversation_gone")
    assert refused(await send(cluster, one, trigger="regenerate-message", messageId=first)) == (
        410,
        "conversation_gone",
    )
    await cluster.pool.execute("DELETE FROM baton.stream")
    message = {"id": second, "role": "assistant", "parts": [{"type": "text", "text": "x"}]}
    for fields in (
        {"message": message},
        {"trigger": "regenerate-message"},
        {"trigger": "regenerate-message", "messageId": second},
        {"message": user("D"), "previousMessageId": second},
    ):
        assert refused(await send(cluster, two, **fields)) == (410, "conversation_gone")
    assert len(model.inputs) == 3


async def test_expired_messages_remain_in_later_streams(
    cluster: Cluster, model: Model, pods: tuple[RunningPod, RunningPod]
) -> None:
    first = answer_of(await send(cluster, pods[0], message=user("A")))
    second = answer_of(await send(cluster, pods[0], message=user("B")))
    horizon = UUID(second.removeprefix("msg_"))
    async with cluster.pool.acquire() as connection:
        await retention.raise_horizon(connection, horizon)
    await cluster.pool.execute("DELETE FROM baton.stream WHERE id < $1", horizon)
    answer_of(await send(cluster, pods[1], message=user("C")))
    assert [message["content"] for message in model.inputs[-1]["messages"]][::2] == ["A", "B", "C"]
    await cluster.pool.execute("DELETE FROM baton.stream")
    answer = await send(cluster, pods[1], trigger="regenerate-message", messageId=first)
    assert refused(answer) == (410, "conversation_gone")
    assert "has expired" in answer.json()["detail"]


async def test_a_log_with_a_gap_is_refused(cluster: Cluster, model: Model, pods: tuple[RunningPod, RunningPod]) -> None:
    answer_of(await send(cluster, pods[0], message=user("A")))
    await cluster.pool.execute("DELETE FROM baton.batch")
    assert refused(await send(cluster, pods[1], message=user("B"))) == (500, "log_damaged")
    assert len(model.inputs) == 1


async def test_the_conversation_counts_against_the_size_of_an_input(cluster: Cluster, model: Model) -> None:
    pod = await cluster.pod(max_input_bytes=300)
    answer_of(await send(cluster, pod, message=user("x" * 100)))
    assert refused(await send(cluster, pod, message=user("y" * 100))) == (413, "input_too_large")


async def test_a_single_message_needs_a_credential_that_may_read(cluster: Cluster, model: Model) -> None:
    _, creating = await make_key(cluster, "create")
    _, both = await make_key(cluster, "create", "read")
    _, another = await make_key(cluster, "create", "read", tenant="another")
    pod = await guarded_pod(cluster)

    async def ask(secret: str, text: str) -> httpx2.Response:
        body = {"id": "42", "message": user(text)}
        return await cluster.client.post(f"{pod.url}{CHAT}", json=body, headers=bearer(secret))

    answer = await ask(creating, "A")
    assert refused(answer) == (403, "forbidden")
    assert "needs the scope read" in answer.json()["detail"]
    answer_of(await ask(both, "A"))
    # A chat of that name is another one for another tenant.
    answer_of(await ask(another, "B"))
    answer_of(await ask(both, "C"))
    assert [len(given["messages"]) for given in model.inputs] == [1, 1, 3]


@pytest.mark.parametrize(
    "fields",
    [
        {"message": {"id": "s", "role": "system", "parts": []}},
        {"message": {"role": "assistant", "parts": []}},
        {"message": {"id": "u", "role": "user", "content": "Hi"}},
        {"message": user("A"), "messageId": 7},
        {"message": "Hi"},
        {},
    ],
)
async def test_a_malformed_message_is_refused(cluster: Cluster, model: Model, fields: dict[str, Any]) -> None:
    pod = await cluster.pod()
    assert refused(await send(cluster, pod, **fields)) == (400, "invalid_request")
    assert await count(cluster) == 0
