"""OpenAI's official clients, unmodified, against real pods."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import openai
import pytest
from bench.packages import INSTALL_SECONDS
from openai import AsyncOpenAI
from pydantic import BaseModel
from tests.clients.balancer import HANGS_UP, SAYS_503, balancer
from tests.clients.node import Node
from tests.clients.pods import ANSWER, WORDS, two_pods
from tests.support.cluster import Cluster, RunningPod, Tap, echo
from tests.support.logbook import DEADLINE_SECONDS, until

from baton import messages
from baton.errors import GenerationError
from baton.generators import GenerationRequest

CALL = {"type": "tool_call", "index": 0, "id": "c0", "name": "look", "arguments_delta": '{"a":1}'}


def client_of(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20)


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[AsyncOpenAI]:
    """A client of a pod, beside a worker."""
    pod = await cluster.pod()
    await cluster.worker({"echo": echo_input, "fail": fail, "json": echo_json})
    async with client_of(pod.url) as client:
        yield client


async def echo_input(request: Any, /) -> AsyncGenerator[Any, None]:
    """Answer with reasoning, what was said, and a call."""
    yield {"type": "reasoning", "delta": "hm"}
    said = request.input.get("input") or request.input["messages"][-1]["content"]
    yield "You said: "
    yield said if isinstance(said, str) else said[-1]["content"]
    yield CALL
    yield {"type": "usage", "input_tokens": 3, "output_tokens": 5, "total_tokens": 8, "reasoning_tokens": 1}


async def echo_json(request: Any, /) -> AsyncGenerator[Any, None]:
    """Answer in the shape of `Point`."""
    for part in ('{"x"', ": 1, ", '"y": 2}'):
        yield part


async def fail(request: Any, /) -> AsyncGenerator[Any, None]:
    """Fail in mid-answer."""
    yield "half an"
    raise GenerationError("provider_cut_off", "The provider hung up.")


class Point(BaseModel):
    """What is asked of the `json` generator."""

    x: int
    y: int


async def test_a_response_that_loses_its_pod_is_continued_on_another(cluster: Cluster) -> None:
    async with two_pods(cluster) as pods, client_of(pods.first) as first, client_of(pods.second) as second:
        pods.say(*WORDS[:300])
        stream = await first.responses.create(model="tap", input="go", stream=True, background=True)
        seen: list[Any] = []
        while len(seen) < 200:
            seen.append(await anext(stream))
        await pods.kill()
        with pytest.raises(openai.APIConnectionError):
            await read_on(stream, seen)
        assert len(seen) >= 200
        pods.say(*WORDS[300:])
        pods.finish()
        response_id, last = seen[0].response.id, seen[-1].sequence_number
        await read_on(await second.responses.retrieve(response_id, stream=True, starting_after=last), seen)
        assert [event.sequence_number for event in seen] == list(range(len(seen)))
        deltas = [event.delta for event in seen if event.type == "response.output_text.delta"]
        assert "".join(deltas) == ANSWER
        assert len(deltas) == len(WORDS)
        assert seen[-1].type == "response.completed"
        assert seen[-1].response.output_text == ANSWER
        # The helper sends no cursor: it reads from the beginning, and shows what follows.
        async with second.responses.stream(response_id=response_id, starting_after=last) as helper:
            again = [event.sequence_number async for event in helper]
            assert (await helper.get_final_response()).output_text == ANSWER
        assert again == list(range(last + 1, len(seen)))


@pytest.mark.timeout(INSTALL_SECONDS + 60)
async def test_the_npm_client_continues_a_response_on_another_pod(cluster: Cluster, node: Node) -> None:
    troubles: list[bytes] = []
    async with (
        two_pods(cluster) as pods,
        balancer(pods.first, pods.second, troubles=troubles) as url,
        node.running("openai.mjs", "tap", url=url) as client,
    ):
        pods.say(*WORDS[:300])
        await client.says("half")
        troubles += [HANGS_UP, SAYS_503]
        await pods.kill()
        pods.say(*WORDS[300:])
        pods.finish()
        whole = (await client.rest())[-1]
        assert whole == {"event": "whole", "deltas": WORDS}
        assert troubles == []


@pytest.mark.timeout(INSTALL_SECONDS + 60)
async def test_the_npm_client_treats_a_cut_completion_as_an_error(cluster: Cluster, node: Node) -> None:
    async with two_pods(cluster) as pods, node.running("openai_chat.mjs", "tap", url=pods.first) as client:
        pods.say(*WORDS[:300])
        await client.says("half")
        await pods.kill()
        broken = (await client.rest())[-1]
        assert (broken["event"], broken["deltas"]) == ("broken", WORDS[:300])


async def read_on(stream: AsyncIterator[Any], seen: list[Any]) -> None:
    """Read to the end, and note what there was even if that is an error."""
    async for event in stream:
        seen.append(event)  # noqa: PERF401


async def test_a_draining_pod_does_not_end_an_answer(cluster: Cluster) -> None:
    tap = Tap()
    pod, other = await cluster.pod(), await cluster.pod()
    await cluster.worker({"tap": tap})
    tap.let("half")
    async with client_of(pod.url) as client, client_of(other.url) as elsewhere:
        response = await client.responses.create(model="tap", input="go", stream=True)
        completion = await client.chat.completions.create(
            model="tap", messages=[{"role": "user", "content": "go"}], stream=True
        )
        first: Any = await anext(response)
        await anext(completion)
        await pod.pod.drain()
        for stream in (response, completion):
            with pytest.raises(openai.APIConnectionError):
                await read_on(stream, [])
        tap.end()
        tap.end()
        # The client of the completion did not leave: the pod did.
        found = await elsewhere.responses.retrieve(first.response.id)
        await until(lambda: pod.metric("baton_subscribers") == 0)
        ended = await cluster.pool.fetch("SELECT cancel_requested_at FROM baton.stream")
        assert [row["cancel_requested_at"] for row in ended] == [None, None]
        assert found.status != "cancelled"


async def test_a_draining_pod_creates_nothing_that_must_be_followed(cluster: Cluster) -> None:
    pod = await cluster.pod()
    await cluster.worker({"echo": echo})
    pod.pod.draining = True
    async with client_of(pod.url) as client:
        for streamed in (True, False):
            with pytest.raises(openai.InternalServerError) as refused:
                await client.responses.create(model="echo", input="x", stream=streamed)
            with pytest.raises(openai.InternalServerError):
                await client.chat.completions.create(
                    model="echo", messages=[{"role": "user", "content": "x"}], stream=streamed
                )
            assert "retry-after" in refused.value.response.headers
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 0


async def test_a_client_waiting_at_a_draining_pod_is_sent_to_its_answer(
    cluster: Cluster,
) -> None:
    tap = Tap()
    pod, other = await cluster.pod(), await cluster.pod()
    await cluster.worker({"tap": tap})
    async with client_of(pod.url) as client, client_of(other.url) as elsewhere:
        waiting = asyncio.create_task(client.responses.create(model="tap", input="go"))
        await tap.started.wait()
        await until(lambda: pod.metric("baton_subscribers") == 1)
        await pod.pod.drain()
        with pytest.raises(openai.InternalServerError, match="Retrieve it as resp_") as told:
            await waiting
        assert told.value.response.headers["x-should-retry"] == "false"
        tap.let("whole")
        tap.end()
        response_id = told.value.message.rpartition("Retrieve it as ")[2].partition(".")[0]
        events = [event async for event in await elsewhere.responses.retrieve(response_id, stream=True)]
        assert events[-1].type == "response.completed"


async def test_a_response_is_created_and_iterated(client: AsyncOpenAI) -> None:
    events = [event async for event in await client.responses.create(model="echo", input="hello", stream=True)]
    completed: Any = events[-1]
    assert completed.type == "response.completed"
    assert completed.response.output_text == "You said: hello"
    assert [item.type for item in completed.response.output] == ["reasoning", "message", "function_call"]
    assert completed.response.usage.output_tokens_details.reasoning_tokens == 1


async def test_a_response_is_awaited_polled_listed_and_deleted(client: AsyncOpenAI) -> None:
    said: Any = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    created = await client.responses.create(
        model="echo", input=said, instructions="be short", metadata={"chat": "7"}, temperature=0
    )
    assert (created.status, created.output_text) == ("completed", "You said: two")
    polled = await client.responses.retrieve(created.id)
    assert polled.to_dict() == created.to_dict()
    listed = await client.responses.retrieve(
        created.id, include=["message.output_text.logprobs", "reasoning.encrypted_content"]
    )
    assert listed.to_dict() == created.to_dict()
    assert (polled.instructions, polled.metadata, polled.temperature) == ("be short", {"chat": "7"}, 0)
    items = [item async for item in client.responses.input_items.list(created.id, limit=1, order="asc")]
    assert [item.content[0].text for item in items] == ["one", "two"]  # type: ignore[union-attr, index]
    await client.responses.delete(created.id)
    with pytest.raises(openai.NotFoundError) as refused:
        await client.responses.retrieve(created.id)
    assert refused.value.code == "stream_not_found"


async def test_the_stream_helper_parses_structured_output(client: AsyncOpenAI) -> None:
    async with client.responses.stream(model="json", input="a point", text_format=Point) as stream:
        snapshots = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert snapshots == ['{"x"', '{"x": 1, ', '{"x": 1, "y": 2}']
    assert final.output_parsed == Point(x=1, y=2)
    async with client.chat.completions.stream(
        model="json", messages=[{"role": "user", "content": "a point"}], response_format=Point
    ) as chat:
        async for _ in chat:
            pass
        assert (await chat.get_final_completion()).choices[0].message.parsed == Point(x=1, y=2)


async def test_a_completion_is_streamed_and_awaited(client: AsyncOpenAI) -> None:
    asked: Any = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
    whole = await client.chat.completions.create(**asked)
    message = whole.choices[0].message
    assert (message.content, message.tool_calls[0].function.arguments) == ("You said: hello", '{"a":1}')
    assert whole.usage is not None
    assert whole.usage.total_tokens == 8
    chunks = [
        chunk
        async for chunk in await client.chat.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        )
    ]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert (text, chunks[-1].usage.completion_tokens) == ("You said: hello", 5)


async def test_a_failure_raises_or_is_reported(client: AsyncOpenAI) -> None:
    messages: Any = [{"role": "user", "content": "go"}]
    failed = await client.responses.create(model="fail", input="go")
    assert failed.status == "failed"
    assert failed.error is not None
    assert "provider_cut_off" in failed.error.message
    events = [event async for event in await client.responses.create(model="fail", input="go", stream=True)]
    assert events[-1].type == "response.failed"
    with pytest.raises(openai.InternalServerError, match="hung up"):
        await client.chat.completions.create(model="fail", messages=messages)
    with pytest.raises(openai.APIError, match="hung up"):
        async for _ in await client.chat.completions.create(model="fail", messages=messages, stream=True):
            pass


async def test_a_conversation_is_created_continued_and_listed(cluster: Cluster) -> None:
    given: list[Any] = []

    async def count(request: GenerationRequest, /) -> AsyncGenerator[Any, None]:
        given.append(messages(request.input))
        yield f"{len(given[-1])} messages"

    await cluster.worker({"count": count})
    pod = await cluster.pod()
    async with client_of(pod.url) as client:
        conversation = await client.conversations.create()
        first = await client.responses.create(model="count", input="A", conversation=conversation.id)
        assert first.conversation is not None
        assert first.conversation.id == conversation.id
        second = await client.responses.create(model="count", input="B", conversation={"id": conversation.id})
        third = await client.responses.create(model="count", input="C", previous_response_id=second.id, stream=True)
        ended = [event async for event in third][-1]
        assert ended.type == "response.completed"
        assert ended.response.previous_response_id == second.id
        assert [len(asked) for asked in given] == [1, 3, 5]
        assert [one["content"] for one in given[-1]] == ["A", "1 messages", "B", "3 messages", "C"]
        items = [item async for item in client.conversations.items.list(conversation.id, order="asc", limit=2)]
        texts = [item.content[0].text for item in items if item.type == "message"]  # type: ignore[union-attr]
        assert texts == ["A", "1 messages", "B", "3 messages", "C", "5 messages"]
        assert (await client.conversations.retrieve(conversation.id)).id == conversation.id
        with pytest.raises(openai.BadRequestError, match="cannot be given together"):
            await client.responses.create(
                model="count", input="D", previous_response_id=second.id, conversation=conversation.id
            )
        with pytest.raises(openai.BadRequestError, match="no items or metadata of its own"):
            await client.conversations.create(metadata={"topic": "demo"})


async def test_errors_have_openais_form(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="There is no model called 'gpt-none'") as unknown:
        await client.responses.create(model="gpt-none", input="x")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="Previous response with id 'resp_1' not found") as previous:
        await client.responses.create(model="echo", input="x", previous_response_id="resp_1")
    assert previous.value.code == "previous_response_not_found"
    with pytest.raises(openai.BadRequestError, match="input"):
        await client.responses.create(model="echo", input="")
    with pytest.raises(openai.BadRequestError, match="only one answer"):
        await client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "x"}], n=2)
    created = await client.responses.create(model="echo", input="x")
    with pytest.raises(openai.ConflictError) as beyond:
        await client.responses.retrieve(created.id, stream=True, starting_after=500)
    assert beyond.value.code == "cursor_beyond_tail"
    with pytest.raises(openai.NotFoundError, match="No route for GET /v1/chat/completions"):
        await client.chat.completions.list()
    with pytest.raises(openai.BadRequestError, match="input: it must be a text"):
        await client.responses.create(model="echo", input=[])
    assert "echo" in [model.id async for model in client.models.list()]
    assert (await client.models.retrieve("echo")).owned_by == "baton"


async def test_input_that_nests_too_deeply_creates_nothing(client: AsyncOpenAI, cluster: Cluster) -> None:
    deep: Any = {}
    for _ in range(246):
        deep = {"a": deep}
    with pytest.raises(openai.BadRequestError, match="stored as JSON"):
        await client.responses.create(model="echo", input="x", extra_body={"tools": [deep]}, stream=True)
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 0


async def test_a_completion_with_an_idempotency_key_outlives_its_client(cluster: Cluster) -> None:
    tap = Tap()
    pod = await cluster.pod()
    await cluster.worker({"tap": tap})
    asked: Any = {
        "model": "tap",
        "messages": [{"role": "user", "content": "go"}],
        "extra_headers": {"idempotency-key": "one"},
    }
    async with client_of(pod.url) as client:
        tap.let("half")
        stream = await client.chat.completions.create(**asked, stream=True)
        await anext(stream)
        await stream.close()
        await until(lambda: pod.metric("baton_subscribers") == 0)
        again = await client.chat.completions.create(**asked, stream=True)
        tap.let("whole")
        tap.end()
        deltas = [chunk.choices[0].delta.content async for chunk in again]
    assert "".join(filter(None, deltas)) == "halfwhole"
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 1


async def test_a_response_is_cancelled(cluster: Cluster) -> None:
    tap = Tap()
    pod = await cluster.pod()
    await cluster.worker({"tap": tap})
    tap.let("half")
    async with client_of(pod.url) as client:
        created = await client.responses.create(model="tap", input="go", background=True)
        assert created.status in {"queued", "in_progress"}
        await tap.started.wait()
        cancelled = await client.responses.cancel(created.id)
        assert (cancelled.status, tap.cancelled.is_set()) == ("cancelled", True)
        assert (await client.responses.cancel(created.id)).status == "cancelled"
        stream = await client.responses.retrieve(created.id, stream=True)
        last: Any = [event async for event in stream][-1]
        assert (last.type, last.response.status) == ("response.incomplete", "cancelled")


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_completion_is_cancelled_when_its_client_leaves(cluster: Cluster, streamed: bool) -> None:
    tap = Tap()
    pod = await cluster.pod()
    await cluster.worker({"tap": tap})
    tap.let("half")
    async with client_of(pod.url) as client:
        await leave_when_it_runs(client, pod, tap, streamed=streamed)
    await asyncio.wait_for(tap.cancelled.wait(), DEADLINE_SECONDS)


async def leave_when_it_runs(client: AsyncOpenAI, pod: RunningPod, tap: Tap, *, streamed: bool) -> None:
    asked: Any = {"model": "tap", "messages": [{"role": "user", "content": "go"}]}
    if streamed:
        stream = await client.chat.completions.create(**asked, stream=True)
        async for chunk in stream:
            if chunk.choices[0].delta.content == "half":
                break
        await stream.close()
    else:
        waiting = asyncio.create_task(client.chat.completions.create(**asked))
        await tap.started.wait()
        await until(lambda: pod.metric("baton_subscribers") == 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_http_1_0_is_refused_before_anything_is_created(cluster: Cluster) -> None:
    pod = await cluster.pod()
    await cluster.worker({"echo": echo})
    host, _, port = pod.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = b'{"model": "echo", "input": "x", "stream": true}'
    writer.write(b"POST /v1/responses HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"proxy_http_version 1.1" in answer
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 0
