"""What was said in a chat, read in each form, and continued by the Responses API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import httpx2
import pytest
from tests.support.access import bearer, guarded_pod, make_key
from tests.support.cluster import Cluster, RunningPod
from tests.support.logbook import DEADLINE_SECONDS

import baton
from baton import messages
from baton.db import retention
from baton.errors import GenerationError
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded

CALL = {"type": "tool_call", "index": 0, "id": "c", "name": "weather", "arguments_delta": '{"city":"Oslo"}'}
CHAT_CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}


def asked(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str | None, *calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": text} | ({"tool_calls": list(calls)} if calls else {})


def result(text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "c", "content": text}


class Model:
    """A generator that answers by the last message, and keeps the messages that it was asked with."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.rest = asyncio.Event()
        self.begun = asyncio.Event()

    async def __call__(self, request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        self.asked.append(messages(request.input))
        last = self.asked[-1][-1]["content"]
        if last == "Run.":
            yield {"type": "reasoning", "delta": "Hm."}
            yield CALL
            yield {"type": "tool_result", "id": "c", "result": {"degrees": 3}}
            yield "Three."
        elif last == "Call.":
            yield CALL
            yield {"type": "finish", "finish_reason": "tool_calls"}
        elif last == "Fail.":
            yield "So far"
            raise GenerationError("tired", "No more.")
        elif last.startswith("Wait."):
            yield "Half"
            self.begun.set()
            await self.rest.wait()
        else:
            yield f"You said {last}"


@pytest.fixture
async def model(cluster: Cluster) -> Model:
    made = Model()
    await cluster.worker({"replay": made})
    return made


@pytest.fixture
async def pod(cluster: Cluster) -> RunningPod:
    return await cluster.pod()


async def respond(cluster: Cluster, pod: RunningPod, given: Any, **fields: Any) -> httpx2.Response:
    return await cluster.client.post(f"{pod.url}/v1/responses", json={"model": "replay", "input": given} | fields)


async def native(cluster: Cluster, pod: RunningPod, given: Any, chat: str = "42") -> str:
    """Create a stream and wait for its end."""
    stream_id = await cluster.create(pod, generator="replay", input=given, metadata={"chat": chat})
    await cluster.client.get(f"{pod.url}/v1/streams/{stream_id}?wait=20")
    return stream_id


async def read(cluster: Cluster, pod: RunningPod, chat: str = "42", **query: str) -> Any:
    answer = await cluster.client.get(f"{pod.url}/v1/conversations/{chat}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_turns_that_hold_only_what_is_new_are_joined(cluster: Cluster, model: Model, pod: RunningPod) -> None:
    ids = [await native(cluster, pod, text) for text in ("A", "Run.", "Fail.", "Fail.", "B")]
    found = await read(cluster, pod)
    whole = [
        *(
            asked("A"),
            said("You said A"),
            asked("Run."),
            said(None, CHAT_CALL),
            result('{"degrees":3}'),
            said("Three."),
        ),
        *(asked("Fail."), said("So far"), asked("B"), said("You said B")),
    ]
    assert found["messages"] == whole
    # The one that was tried again counts once.
    assert [(one["id"], one["status"]) for one in found["answers"]] == [
        *((ids[0], "completed"), (ids[1], "completed"), (ids[3], "failed"), (ids[4], "completed"))
    ]
    assert (found["active"], found["complete"], found["next"]) == (None, True, None)
    # In each form it is the same conversation.
    for form in ("responses", "anthropic", "aisdk"):
        assert (
            messages(
                {
                    name: value
                    for name, value in (await read(cluster, pod, form=form)).items()
                    if name in {"messages", "input", "system"}
                }
            )
            == whole
        ), form


async def test_a_request_with_the_whole_conversation_replaces_what_was_before(
    cluster: Cluster, model: Model, pod: RunningPod
) -> None:
    url = f"{pod.url}/v1/chat/completions"
    whole = [asked("A")]
    for text in ("B", None):
        body = {"model": "replay", "messages": whole, "metadata": {"chat": "42"}}
        answer = (await cluster.client.post(url, json=body)).json()
        whole = [*whole, said(answer["choices"][0]["message"]["content"]), *([asked(text)] if text else [])]
    assert (await read(cluster, pod))["messages"] == whole
    # The first question, asked again, begins again.
    await cluster.client.post(url, json={"model": "replay", "messages": [asked("A")], "metadata": {"chat": "42"}})
    assert (await read(cluster, pod))["messages"] == whole[:2]


async def test_an_answer_in_progress_is_named_and_left_out(cluster: Cluster, model: Model, pod: RunningPod) -> None:
    await native(cluster, pod, "A")
    stream_id = await cluster.create(pod, generator="replay", input="Wait.", metadata={"chat": "42"})
    await asyncio.wait_for(model.begun.wait(), 20)
    found = await read(cluster, pod)
    assert found["messages"] == [asked("A"), said("You said A"), asked("Wait.")]
    assert found["active"] == {"id": stream_id, "status": "running"}
    model.rest.set()


async def test_a_waiting_answer_is_active(cluster: Cluster, pod: RunningPod) -> None:
    @baton.continues
    async def asking(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield CALL
        yield {"type": "tool_approval", "id": "c"}
        yield {"type": "wait", "for": {"type": "approval", "calls": ["c"]}, "until": 600}

    await cluster.worker({"asking": asking})
    stream_id = await cluster.create(pod, generator="asking", input="A", metadata={"chat": "42"})

    async def waiting() -> bool:
        return bool((await read(cluster, pod))["active"] == {"id": stream_id, "status": "waiting"})

    async with asyncio.timeout(DEADLINE_SECONDS):
        while not await waiting():
            pass
    assert (await read(cluster, pod))["messages"] == [asked("A")]
    refused = await respond(cluster, pod, "B", conversation="42")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "answer_running")


async def test_a_native_chat_may_have_a_number_as_its_id(cluster: Cluster, model: Model, pod: RunningPod) -> None:
    stream_id = await cluster.create(pod, generator="replay", input="A", metadata={"chat": 42})
    await cluster.client.get(f"{pod.url}/v1/streams/{stream_id}?wait=20")
    whole = [asked("A"), said("You said A"), asked("B")]
    await respond(cluster, pod, "B", conversation="42")
    await respond(cluster, pod, "B", previous_response_id=f"resp_{stream_id.replace('-', '')}")
    assert model.asked[1:] == [whole, whole]


async def test_content_that_is_not_events_is_left_out(cluster: Cluster, model: Model, pod: RunningPod) -> None:
    await native(cluster, pod, "A")
    raw = await cluster.client.put(f"{pod.url}/v1/stream/notes", headers={"content-type": "text/plain"}, content="x")
    assert raw.status_code == 201
    await cluster.pool.execute("UPDATE baton.stream SET metadata = '{\"chat\": \"42\"}' WHERE generator = 'external'")
    found = await read(cluster, pod, form="aisdk")
    assert [one["role"] for one in found["messages"]] == ["user", "assistant"]
    assert found["complete"] is True


async def test_what_a_reset_discarded_is_not_in_the_conversation(cluster: Cluster, pod: RunningPod) -> None:
    author = await cluster.author(chat="42")
    await author.write(b'{"type":"text","delta":"wrong"}', b'{"type":"usage","input_tokens":2}')
    await author.write(b'{"type":"reset","reason":"worker_lost"}', b'{"type":"text","delta":"right"}', end=True)
    found = await read(cluster, pod, form="aisdk")
    (answer,) = found["messages"]
    assert [part.get("text") for part in answer["parts"]] == [None, "right"]
    assert answer["metadata"]["usage"] == {"inputTokens": 2}
    # Its input is no conversation, which is said.
    assert found["complete"] is False


async def test_pages_of_a_long_conversation_are_joined(
    cluster: Cluster, model: Model, pod: RunningPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.api.stored_conversations._MAX_STREAMS", 2)
    for text in "ABCDE":
        await native(cluster, pod, text, "a/b")
    found: list[Any] = []
    following, pages = "/v1/conversations/a%2Fb?form=messages", 0
    while following:
        page = (await cluster.client.get(f"{pod.url}{following}")).json()
        found, following, pages = page["messages"] + found, page["next"], pages + 1
        assert page["complete"] is (following is None)
    assert found == [one for text in "ABCDE" for one in (asked(text), said(f"You said {text}"))]
    assert pages == 3


async def test_the_reader_is_charged_for_the_rows(cluster: Cluster) -> None:
    await cluster.pool.execute(
        "INSERT INTO baton.stream (generator, input, on_worker_lost, metadata) "
        """SELECT 'nobody', '"A"', 'fail', '{"chat": "42"}' FROM generate_series(1, 40)"""
    )
    pod = await cluster.pod(reads_per_second=0.01, reads_burst=3)
    assert len((await read(cluster, pod))["messages"]) == 40
    answer = await cluster.client.get(f"{pod.url}/v1/conversations/42")
    assert (answer.status_code, answer.json()["code"]) == (429, "read_rate_limited")


async def test_an_expired_turn_is_in_the_input_of_later_ones(cluster: Cluster, model: Model, pod: RunningPod) -> None:
    ids = [(await respond(cluster, pod, text, conversation="42")).json()["id"] for text in ("Run.", "B")]
    whole = await read(cluster, pod)
    await cluster.pool.execute("DELETE FROM baton.stream WHERE id = $1", UUID(ids[0].removeprefix("resp_")))
    async with cluster.pool.acquire() as connection:
        await retention.raise_horizon(connection, UUID(ids[1].removeprefix("resp_")))
    left = await read(cluster, pod)
    assert (left["messages"], left["complete"]) == (whole["messages"], True)
    refused = await respond(cluster, pod, "C", previous_response_id=ids[0])
    assert "has expired" in refused.json()["error"]["message"]
    # A page gets the parts that an input has: no reasoning.
    page = (await read(cluster, pod, form="aisdk"))["messages"]
    assert [part["type"] for part in page[1]["parts"]] == ["step-start", "tool-weather", "step-start", "text"]


async def test_a_response_continues_another(cluster: Cluster, model: Model, pod: RunningPod) -> None:
    first = (await respond(cluster, pod, "A", metadata={"chat": "42"}, instructions="Be brief.")).json()
    assert first["previous_response_id"] is None
    second = (await respond(cluster, pod, "Call.", previous_response_id=first["id"])).json()
    assert (second["previous_response_id"], second["conversation"]) == (first["id"], {"id": "42"})
    output = {"type": "function_call_output", "call_id": "c", "output": "3"}
    third = (await respond(cluster, pod, [output], previous_response_id=second["id"])).json()
    whole = [asked("A"), said("You said A"), asked("Call."), said(None, CHAT_CALL), result("3")]
    # Instructions are not carried over.
    assert model.asked[1:] == [whole[:3], whole]
    again = (await cluster.client.get(f"{pod.url}/v1/responses/{third['id']}")).json()
    assert again == third
    assert (await read(cluster, pod))["messages"] == [*whole, said("You said 3")]
    # One may have several that continue it: the newest is the chat's.
    await respond(cluster, pod, "B", previous_response_id=first["id"])
    assert (await read(cluster, pod))["messages"] == [*whole[:2], asked("B"), said("You said B")]


async def test_a_conversation_is_continued_by_either_client(cluster: Cluster, model: Model, pod: RunningPod) -> None:
    url, user = f"{pod.url}/v1/ai-sdk/chat", {"id": "u", "role": "user", "parts": [{"type": "text", "text": "A"}]}
    await respond(cluster, pod, "First", conversation="42")
    await cluster.client.post(url, json={"id": "42", "message": user})
    await respond(cluster, pod, "B", conversation={"id": "42"})
    assert model.asked[-1] == [*(asked("First"), said("You said First"), asked("A"), said("You said A"), asked("B"))]
    page = (await read(cluster, pod, form="aisdk"))["messages"]
    assert page[2]["id"] == "u"
    assert [one["metadata"]["status"] for one in page if one["role"] == "assistant"] == ["completed"] * 3


async def test_a_conversation_has_one_successor(cluster: Cluster, model: Model, pod: RunningPod) -> None:
    await respond(cluster, pod, "A", conversation="42")
    running = (await respond(cluster, pod, "Wait.", conversation="42", background=True)).json()
    await asyncio.wait_for(model.begun.wait(), 20)
    refused = await respond(cluster, pod, "B", conversation="42")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "answer_running")
    refused = await respond(cluster, pod, "B", previous_response_id=running["id"])
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "answer_running")
    # The same request gets the same Response.
    assert (await respond(cluster, pod, "Wait.", conversation="42", background=True)).json()["id"] == running["id"]
    model.rest.set()
    url = f"{pod.url}/v1/responses/{running['id']}"

    async def ended() -> bool:
        return bool((await cluster.client.get(url)).json()["status"] == "completed")

    async with asyncio.timeout(DEADLINE_SECONDS):
        while not await ended():
            pass
    model.rest.clear()
    texts = ("Wait. B", "Wait. C")
    both = await asyncio.gather(*(respond(cluster, pod, text, conversation="42", background=True) for text in texts))
    assert sorted(one.status_code for one in both) == [200, 409]
    model.rest.set()


async def test_what_cannot_be_continued_is_refused(cluster: Cluster, model: Model, pod: RunningPod) -> None:
    first = (await respond(cluster, pod, "A", conversation="42")).json()["id"]
    second = (await respond(cluster, pod, "B", conversation="42")).json()["id"]
    for fields, status, code in (
        ({"previous_response_id": "resp_x"}, 400, "previous_response_not_found"),
        ({"previous_response_id": f"resp_{'0' * 32}"}, 400, "previous_response_not_found"),
        ({"previous_response_id": first, "conversation": "42"}, 400, "invalid_request"),
        ({"conversation": "42", "metadata": {"chat": "43"}}, 400, "invalid_request"),
    ):
        refused = await respond(cluster, pod, "C", **fields)
        assert (refused.status_code, refused.json()["error"]["code"]) == (status, code), fields
    assert (await cluster.client.delete(f"{pod.url}/v1/responses/{first}")).status_code == 200
    refused = await respond(cluster, pod, "C", previous_response_id=second)
    assert (refused.status_code, refused.json()["error"]["code"]) == (410, "conversation_gone")
    # What is left is shown, without the erased answer.
    found = await read(cluster, pod)
    assert found["messages"] == [asked("A"), asked("B"), said("You said B")]
    assert found["complete"] is False


async def test_a_conversation_larger_than_an_input_is_refused(cluster: Cluster, model: Model) -> None:
    pod = await cluster.pod(max_input_bytes=600)
    await respond(cluster, pod, "A" * 300, conversation="42")
    refused = await respond(cluster, pod, "B" * 300, conversation="42")
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "input_too_large")


async def test_another_tenants_conversation_does_not_exist(cluster: Cluster, model: Model) -> None:
    (_, ours), (_, theirs) = await make_key(cluster), await make_key(cluster, tenant="other")
    (_, creating) = await make_key(cluster, "create")
    pod = await guarded_pod(cluster)
    url = f"{pod.url}/v1/responses"

    async def respond(key: str, **fields: Any) -> httpx2.Response:
        return await cluster.client.post(url, json={"model": "replay", "input": "A"} | fields, headers=bearer(key))

    first = (await respond(ours, conversation="42")).json()["id"]
    refused = await respond(theirs, previous_response_id=first)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "previous_response_not_found")
    await respond(theirs, conversation="42")
    assert model.asked[-1] == [asked("A")]
    # A caller that may not read gets nothing to read by continuing.
    assert (await respond(creating, conversation="42")).status_code == 403
    assert (await respond(creating, previous_response_id=first)).status_code == 403
    for key, status in ((ours, 200), (theirs, 200), (creating, 403)):
        answer = await cluster.client.get(f"{pod.url}/v1/conversations/42", headers=bearer(key))
        assert answer.status_code == status
        assert status != 200 or len(answer.json()["messages"]) == 2


# Each of these is JSON that a native client may have sent. Until it is read as a conversation, nobody has looked at it.
ODD_MESSAGES: list[dict[str, Any]] = [
    {"content": "x"},
    {"role": 7, "content": "x"},
    {"role": "x", "content": "y"},
    {"role": "tool", "content": "x"},
    {"role": "tool", "tool_call_id": {"a": 1}, "content": "x"},
    {"role": "assistant", "tool_calls": 7},
    {"role": "assistant", "tool_calls": [7]},
    {"role": "assistant", "tool_calls": [{}]},
    {"role": "assistant", "tool_calls": [{"id": "c", "function": {}}]},
    {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "x", "arguments": 5}}]},
    {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "x", "arguments": {"a": 5}}}]},
    {"role": "assistant", "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "x", "input": "y"}}]},
    {"role": "assistant", "content": [{"type": "tool_use"}]},
    {"role": "assistant", "parts": [{"type": "tool-x", "state": "output-available"}]},
    {"role": "user", "content": 7},
    {"role": "user", "content": [{}]},
    {"role": "user", "content": [{"type": "text", "text": 8}]},
    {"role": "user", "content": [{"type": "image_url"}]},
    {"role": "user", "content": [{"type": "file", "file": 3}]},
    {"role": "user", "content": "x", "id": {"a": 1}},
    {"type": "function_call"},
    {"type": "function_call_output"},
    {"type": "ai", "tool_calls": 5},
]


async def test_an_odd_message_breaks_no_reader_of_its_chat(cluster: Cluster) -> None:
    pod = await cluster.pod()
    output = {"type": "function_call_output", "call_id": "c", "output": "3"}
    for number, odd in enumerate(ODD_MESSAGES):
        chat = f"odd-{number}"
        given = {"input": {"messages": [asked("A"), odd, asked("B")]}, "metadata": {"chat": chat}}
        created = await cluster.client.post(f"{pod.url}/v1/streams", json=given)
        assert created.status_code == 201
        await cluster.client.post(f"{pod.url}/v1/streams/{created.json()['id']}/cancel")
        for path in (
            *(f"conversations/{chat}?form={form}" for form in ("messages", "responses", "anthropic", "aisdk")),
            f"langgraph/threads/{chat}/state",
        ):
            answer = await cluster.client.get(f"{pod.url}/v1/{path}")
            assert answer.status_code < 500, (odd, path, answer.text)
        for new in ("C", [output]):
            answer = await respond(cluster, pod, new, conversation=chat, background=True)
            assert answer.status_code < 500, (odd, answer.text)
