"""Streams that wait for the user of a page: the answer is an input, and every address keeps its numbers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import httpx2
import pytest
from tests.integration.api.test_aisdk_continuing import CALL, CHAT, USER, assistant, chunks, sent
from tests.support.cluster import Cluster, RunningPod
from tests.support.logbook import until

import baton
from baton.db import inputs
from baton.db.notifications import HELD, QUEUE_CHANNEL
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded

REST = ["start-step", "tool-output-available", "text-start", "text-delta", "text-end", "finish-step", "finish"]
GOT: list[Any] = []


@baton.continues
async def careful(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Ask about its calls, wait until all are answered, and run those that are allowed."""
    yield {"type": "continue", "after": request.so_far.seq}
    asked: list[str] = ["c", "d"] if request.input.get("both") else ["c"]
    if request.run == 1:
        yield "Let me see."
        for index, call_id in enumerate(asked):
            yield CALL | {"index": index, "id": call_id}
            yield {"type": "tool_approval", "id": call_id}
    decided: dict[str, Any] = request.state or {}
    while (answer := await request.receive(0)) is not None:
        GOT.append(answer)
        decided[answer["call_id"]] = answer["approved"]
    if len(decided) < len(asked):
        yield {"type": "wait", "for": {"type": "approval", "calls": asked}, "state": decided}
        return
    for call_id in asked:
        yield {"type": "tool_result", "id": call_id, "result": decided[call_id], "denied": not decided[call_id]}
    yield "Done."


class Page:
    """A page of a chat on a pod."""

    def __init__(self, cluster: Cluster, pod: RunningPod) -> None:
        self.client = cluster.client
        self.pod = pod
        self.chat = f"{pod.url}{CHAT}"

    async def ask(self, **fields: Any) -> list[dict[str, Any]]:
        """Send a question; return the chunks up to the wait."""
        GOT.clear()
        return chunks((await self.client.post(self.chat, json=sent(model="careful", **fields))).content)

    async def answer(self, asked: list[dict[str, Any]], reason: str | None = None, **decided: bool) -> httpx2.Response:
        """Send the message back with answers, as a page does that has read these chunks."""
        parts = []
        for chunk in asked:
            if chunk["type"] == "tool-approval-request" and chunk["toolCallId"] in decided:
                call_id = chunk["toolCallId"]
                approval = {"id": chunk["approvalId"], "approved": decided[call_id], "reason": reason}
                part = {"type": "tool-weather", "toolCallId": call_id, "state": "approval-responded", "input": {}}
                parts.append(part | {"approval": approval})
        message = assistant(*parts, id=asked[0]["messageId"], metadata=asked[-1]["messageMetadata"])
        return await self.client.post(self.chat, json=sent(message, model="careful"))

    async def read(self, address: str, index: int | None = 0) -> httpx2.Response:
        query = "" if index is None else f"?startIndex={index}"
        return await self.client.get(f"{self.chat}/{address}/stream{query}")


@pytest.fixture
async def pages(cluster: Cluster) -> list[Page]:
    await cluster.worker({"careful": careful})
    return [Page(cluster, await cluster.pod()) for _ in range(2)]


def types(found: list[dict[str, Any]]) -> list[str]:
    return [chunk["type"] for chunk in found]


async def test_a_stream_waits_and_its_answer_follows_as_the_same_message(cluster: Cluster, pages: list[Page]) -> None:
    one, two = pages
    asked = await one.ask()
    assert types(asked)[-3:] == ["tool-approval-request", "finish-step", "finish"]
    waiting = asked[-1]["messageMetadata"]["waiting"]
    assert waiting["for"] == {"type": "approval", "calls": ["c"]}
    assert await cluster.pool.fetchval("SELECT status FROM baton.stream") == "waiting"
    reloaded = await two.read("42", None)
    assert (reloaded.status_code, chunks(reloaded.content)) == (200, asked)
    answer = await two.answer(asked, c=True)
    rest = chunks(answer.content)
    assert types(rest) == ["start", "message-metadata", *REST]
    assert rest[0]["messageId"] == asked[0]["messageId"]
    assert GOT == [{"type": "approval", "call_id": "c", "approved": True, "reason": None}]
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 1
    # Later it is one message, without the `finish` and the `start` in between.
    whole = chunks((await one.read("42")).content)
    assert whole == [*asked[:-1], *rest[1:]]
    await numbers_hold(pages, answer.headers["x-workflow-run-id"], rest)
    await numbers_hold(pages, f"run_{rest[0]['messageId'].removeprefix('msg_')}", whole)


async def numbers_hold(pages: list[Page], address: str, whole: list[dict[str, Any]]) -> None:
    """A client gets the rest at every index, on every pod; at a negative one, from the beginning of a part."""
    for page in pages:
        for index in range(len(whole) + 1):
            assert chunks((await page.read(address, index)).content) == (whole[index:] or whole[-1:])
        for index in (-1, -4, -100):
            back = await page.read(address, index)
            shown = chunks(back.content)
            assert shown == whole[-len(shown) :]
            assert int(back.headers["x-workflow-stream-tail-index"]) + index + 1 == len(whole) - len(shown)


async def test_every_index_of_a_stream_that_waits_leads_to_its_finish(pages: list[Page]) -> None:
    asked = await pages[0].ask()
    for index in range(len(asked) + 1):
        assert chunks((await pages[1].read("42", index)).content) == (asked[index:] or asked[-1:])
    shown = chunks((await pages[1].read("42", -1)).content)
    assert shown == asked[-len(shown) :]


async def test_a_client_that_comes_back_after_the_answer_gets_what_it_lacks(pages: list[Page]) -> None:
    """Whether it was cut off before the wait, or has counted the `finish` of the wait."""
    asked = await pages[0].ask()
    rest = chunks((await pages[1].answer(asked, c=True)).content)
    for place in (3, len(asked) - 1):
        found = chunks((await pages[1].read("42", place)).content)
        assert found == [*asked[place:-1], *rest[1:]]
    assert chunks((await pages[1].read("42", len(asked))).content) == rest[2:]


async def test_the_same_answer_is_one_input_and_another_is_refused(cluster: Cluster, pages: list[Page]) -> None:
    one, two = pages
    asked = await one.ask(both=True)
    assert asked[-1]["messageMetadata"]["waiting"]["for"]["calls"] == ["c", "d"]
    first = await one.answer(asked, c=True)
    again = chunks(first.content)
    assert types(again) == ["start", "message-metadata", "start-step", "finish-step", "finish"]
    # From a tab that has not seen the second wait.
    repeated = await two.answer(asked, "for another reason", c=True)
    assert chunks(repeated.content) == again
    refused = await two.answer(asked, c=False, d=True)
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_conflict")
    assert len(GOT) == 1
    answers = await asyncio.gather(*(page.answer(asked, d=False) for page in (one, two, one)))
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert [(answer["call_id"], answer["approved"]) for answer in GOT] == [("c", True), ("d", False)]
    found = chunks(answers[0].content)
    assert types(found)[-6:] == ["tool-output-denied", *REST[2:]]
    # They had not seen the second wait, so they get what it follows, too.
    assert found[: len(again) - 1] == again[:-1]
    assert all(chunks(answer.content) == found for answer in answers)
    late = await two.answer(asked, d=False)
    assert (late.status_code, late.json()["code"]) == (422, "idempotency_conflict")
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 1


async def test_all_answers_of_a_message_wake_the_generator_once(cluster: Cluster, pages: list[Page]) -> None:
    asked = await pages[0].ask(both=True)
    rest = chunks((await pages[1].answer(asked, d=False, c=True)).content)
    assert [answer["call_id"] for answer in GOT] == ["c", "d"]
    assert types(rest)[-1] == "finish"
    assert await cluster.pool.fetchval("SELECT run FROM baton.stream") == 2


async def test_an_answer_is_counted_and_announced_as_any_input(cluster: Cluster) -> None:
    """The stream is not in line yet, so a claim would not find it: a worker must admit it."""
    page = Page(cluster, await cluster.pod())
    worker = await cluster.worker({"careful": careful})
    asked = await page.ask()
    await cluster.kill(worker)
    heard: list[str] = []
    async with cluster.pool.acquire() as connection:
        await connection.add_listener(QUEUE_CHANNEL, lambda *given: heard.append(given[3]))
        answering = asyncio.create_task(page.answer(asked, c=True))
        await until(lambda: bool(heard))
        await connection.reset()
    assert heard == [HELD]
    await cluster.worker({"careful": careful})
    assert (await answering).is_success
    assert page.pod.metric("baton_inputs_total", outcome="woken") == 1


async def test_answers_that_do_not_fit_are_refused_as_any_input(
    cluster: Cluster, pages: list[Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "MOST", 1)
    asked = await pages[0].ask(both=True)
    refused = await pages[1].answer(asked, c=True, d=True)
    assert (refused.status_code, refused.json()["code"]) == (409, "inbox_full")
    assert pages[1].pod.metric("baton_inputs_total", outcome="inbox_full") == 1
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.input") == 0


async def test_an_answer_follows_although_no_worker_is_there(cluster: Cluster) -> None:
    """The stream is in line again, and its page waits: it is not told that the stream waits for people."""
    page = Page(cluster, await cluster.pod())
    worker = await cluster.worker({"careful": careful})
    asked = await page.ask()
    await cluster.kill(worker)
    answering = asyncio.create_task(page.answer(asked, c=True))

    async def queued() -> bool:
        return bool(await cluster.pool.fetchval("SELECT status = 'queued' FROM baton.stream"))

    await until(queued)
    replaying = asyncio.create_task(page.read("42"))
    await cluster.worker({"careful": careful})
    rest = chunks((await answering).content)
    assert types(rest) == ["start", "message-metadata", *REST]
    assert chunks((await replaying).content) == [*asked[:-1], *rest[1:]]


async def test_a_page_that_sends_its_last_message_only_answers_too(cluster: Cluster, pages: list[Page]) -> None:
    asked = await pages[0].ask()
    (request,) = [chunk for chunk in asked if chunk["type"] == "tool-approval-request"]
    part = {"type": "tool-weather", "toolCallId": "c", "state": "approval-responded", "input": {}}
    part["approval"] = {"id": request["approvalId"], "approved": True}
    question = {"id": "42", "message": {**USER, "id": "u2"}, "model": "careful"}
    running = await pages[1].client.post(pages[1].chat, json=question)
    assert (running.status_code, running.json()["code"]) == (409, "answer_running")
    assert "Answer it, or stop it." in running.json()["detail"]
    message = assistant(part, id=asked[0]["messageId"])
    answer = await pages[1].client.post(pages[1].chat, json={"id": "42", "message": message, "model": "careful"})
    assert types(chunks(answer.content)) == ["start", "message-metadata", *REST]
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 1
    after = await pages[1].client.post(pages[1].chat, json=question)
    assert after.status_code == 200


async def test_a_question_that_an_ended_stream_waited_with_can_still_be_answered(
    cluster: Cluster, pages: list[Page]
) -> None:
    """As with one that asks and ends: a new stream gets the approval."""
    asked = await pages[0].ask()
    stopped = await pages[1].client.post(f"{pages[1].chat}/42/stop")
    assert stopped.status_code == 200
    again = chunks((await pages[0].read("42")).content)
    assert types(again)[-4:] == ["message-metadata", "start-step", "abort", "finish"]
    assert again[-1]["messageMetadata"] == {"status": "cancelled"}
    assert (await pages[0].read("42", None)).status_code == 204
    answer = await pages[1].answer(asked, c=True)
    assert answer.status_code == 200
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 2


async def test_an_answer_in_the_older_form_is_an_input_too(cluster: Cluster, pages: list[Page]) -> None:
    asked = await pages[0].ask()
    stream = asked[0]["messageId"].removeprefix("msg_")
    for chunk in asked:
        if chunk["type"] == "tool-approval-request":
            chunk["approvalId"] = f"approval_{stream}_c"
    assert types(chunks((await pages[1].answer(asked, c=True)).content))[-1] == "finish"
    assert len(GOT) == 1


async def test_a_run_after_a_wait_must_exist(cluster: Cluster, pages: list[Page]) -> None:
    asked = await pages[0].ask()
    stream = UUID(asked[0]["messageId"].removeprefix("msg_"))
    wrong = await pages[0].read(f"run_{stream.hex}_2")
    assert (wrong.status_code, wrong.json()["detail"]) == (400, f"No wait of the stream {stream} has the number 2.")


async def test_other_dialects_stay_connected_while_a_stream_waits(cluster: Cluster, pages: list[Page]) -> None:
    """Chat Completions, Responses and plain text cannot say that an answer waits, and get the rest when it comes."""
    base = pages[0].chat.removesuffix(CHAT)
    body = {"model": "careful", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
    GOT.clear()
    completing = asyncio.create_task(cluster.client.post(f"{base}/v1/chat/completions", json=body))

    async def waits() -> bool:
        return bool(await cluster.pool.fetchval("SELECT status = 'waiting' FROM baton.stream"))

    await until(waits)
    stream_id = await cluster.pool.fetchval("SELECT id FROM baton.stream")
    response = (await cluster.client.get(f"{base}/v1/responses/resp_{stream_id.hex}")).json()
    assert response["status"] == "in_progress"
    following = f"{base}/v1/responses/resp_{stream_id.hex}?stream=true"
    text = {"accept": "text/plain"}
    reading = [
        asyncio.create_task(cluster.client.get(following)),
        asyncio.create_task(cluster.client.get(f"{base}/v1/streams/{stream_id}/events", headers=text)),
    ]
    await asyncio.sleep(0)
    content = json.dumps({"type": "approval", "call_id": "c", "approved": True, "reason": None}).encode()
    await cluster.pool.fetchrow("SELECT * FROM baton.add_input($1, $2, NULL, 100)", stream_id, content)
    completion = await completing
    assert completion.text.endswith("data: [DONE]\n\n")
    assert "Let me see." in completion.text
    assert "Done." in completion.text
    assert '"finish_reason":"stop"' in completion.text
    responses, _plain = await asyncio.gather(*reading)
    assert "response.completed" in responses.text
