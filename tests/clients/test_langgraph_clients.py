"""LangGraph's official clients, unmodified, against real pods: they resume by themselves when a pod is killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import orjson
import pytest
from bench.packages import INSTALL_SECONDS
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient
from langgraph_sdk.errors import ConflictError, InternalServerError, NotFoundError
from tests.clients.balancer import balancer
from tests.clients.node import Node
from tests.clients.pods import ANSWER, WORDS, two_pods
from tests.support.cluster import Cluster

import baton
from baton.events import encode_text
from baton.generators import GenerationRequest
from baton.generators.conversation import messages
from baton.generators.protocol import Yielded

INPUT: dict[str, Any] = {"messages": [{"role": "user", "content": "go"}]}
MODES: Any = ["messages-tuple", "values"]

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 120)


@baton.continues
async def agent(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Ask, be slow, or fail, as the last message says."""
    yield {"type": "continue", "after": request.so_far.seq}
    last = messages(request.input)[-1]["content"]
    if last == "ask" and request.run == 1:
        yield "Well."
        yield {"type": "wait", "for": {"question": "really?"}}
    elif last == "ask":
        yield f"You said {await request.receive(0)}."
    elif last == "slow":
        yield "Slow"
        await asyncio.Event().wait()
    else:
        raise baton.GenerationError("broken", "It broke.")


def client_of(url: str) -> LangGraphClient:
    return get_client(url=f"{url}/v1/langgraph", api_key=None)


def last_text(values: Any) -> str:
    text: str = values["messages"][-1]["content"]
    return text


async def test_the_python_client_survives_a_killed_pod(cluster: Cluster) -> None:
    async with (
        two_pods(cluster) as pods,
        balancer(pods.first, pods.second) as url,
        client_of(url) as client,
    ):
        pods.say(*WORDS[:300])
        texts, values, killed = [], None, False
        async for part in client.runs.stream("t", "tap", input=INPUT, stream_mode=MODES):
            if part.event == "messages" and part.data[0]["type"] == "AIMessageChunk":
                texts.append(part.data[0]["content"])
            elif part.event == "values":
                values = part.data
            if len(texts) == 200 and not killed:
                killed = True
                await pods.kill()
                pods.say(*WORDS[300:])
                pods.finish()
        assert killed
        assert "".join(texts) == ANSWER == last_text(values)
        # It says the same to a client that comes later.
        (run,) = await client.runs.list("t")
        again = [part async for part in client.runs.join_stream("t", run["run_id"], stream_mode=["messages-tuple"])]
        chunks = [part.data[0]["content"] for part in again if part.event == "messages"]
        assert "".join(chunks) == ANSWER


@pytest.mark.filterwarnings("ignore:Request failed, attempting reconnect")
async def test_the_python_client_waits_through_a_killed_pod(cluster: Cluster) -> None:
    async with (
        two_pods(cluster) as pods,
        balancer(pods.first, pods.second) as url,
        client_of(url) as client,
    ):
        pods.say(*WORDS[:300])
        begun = asyncio.Event()
        run = client.runs.wait("t", "tap", input=INPUT, on_run_created=lambda _run: begun.set())
        waiting = asyncio.create_task(run)
        await begun.wait()
        await pods.kill()
        pods.say(*WORDS[300:])
        pods.finish()
        assert last_text(await waiting) == ANSWER


async def test_the_python_client_takes_no_part_of_an_erased_run_for_the_whole(cluster: Cluster) -> None:
    pod, author = await cluster.pod(), await cluster.author(chat="t")
    await author.write(encode_text("Half"))

    async def read() -> None:
        async with client_of(pod.url) as client:
            async for part in client.runs.join_stream("t", str(author.id), stream_mode=["messages-tuple"]):
                if part.event == "messages":
                    await cluster.client.delete(f"{pod.url}/v1/streams/{author.id}")

    with pytest.raises(NotFoundError, match="no stream"):
        await read()


async def test_the_python_client_talks_to_a_thread(cluster: Cluster) -> None:
    await cluster.worker({"agent": agent})
    pod = await cluster.pod()
    async with client_of(pod.url) as client:
        assert "agent" in [found["assistant_id"] for found in await client.assistants.search()]
        thread = (await client.threads.create())["thread_id"]
        say: dict[str, Any] = {
            text: {"messages": [{"role": "user", "content": text}]} for text in ("ask", "slow", "fail")
        }
        asked: Any = await client.runs.wait(thread, "agent", input=say["ask"])
        assert asked["__interrupt__"][0]["value"] == {"question": "really?"}
        state: Any = await client.threads.get_state(thread)
        assert state["tasks"][0]["interrupts"] == asked["__interrupt__"]
        with pytest.raises(ConflictError, match="Answer it, or stop it"):
            await client.runs.create(thread, "agent", input=say["ask"])
        resumed = [part async for part in client.runs.stream(thread, "agent", command={"resume": "yes"})]
        assert [part.event for part in resumed] == ["metadata", "values", "values", "end"]
        assert last_text(resumed[2].data) == "You said yes."
        run = await client.runs.create(thread, "agent", input=say["slow"])
        await client.runs.cancel(thread, run["run_id"], wait=True)
        assert (await client.runs.get(thread, run["run_id"]))["status"] == "interrupted"
        with pytest.raises(Exception, match="It broke"):
            await client.runs.wait(thread, "agent", input=say["fail"])
        with pytest.raises(InternalServerError, match="rollback"):
            await client.runs.create(thread, "agent", input=say["ask"], multitask_strategy="rollback")
        with pytest.raises(InternalServerError, match="store"):
            await client.store.search_items(("a",))
        assert len(await client.threads.get_history(thread)) == 1
        assert isinstance(client.http.client, httpx.AsyncClient)


@pytest.mark.parametrize("how", ["stream", "join"])
async def test_the_javascript_client_survives_a_killed_pod(cluster: Cluster, node: Node, how: str) -> None:
    async with two_pods(cluster) as pods, balancer(pods.first, pods.second) as url:
        pods.say(*WORDS[:300])
        async with node.running("langgraph.mjs", url, how, "t") as script:
            await script.says("seen")
            await pods.kill()
            pods.say(*WORDS[300:])
            pods.finish()
            end = await script.says("end")
            assert end["text"] == ANSWER == last_text(end["values"])
            assert end["events"][-1] == "end"


async def test_the_javascript_client_talks_to_a_thread(cluster: Cluster, node: Node) -> None:
    await cluster.worker({"agent": agent})
    pod = await cluster.pod()
    async with node.running("langgraph.mjs", pod.url, "talk") as script:
        said = {line["event"]: line for line in await script.rest()}
    assert "agent" in said["assistants"]["found"]
    assert said["asked"]["values"]["__interrupt__"] == said["state"]["interrupts"]
    assert said["state"]["status"] == "interrupted"
    assert last_text(said["resumed"]["values"]) == "You said yes."
    assert said["cancelled"]["run"]["status"] == "interrupted"
    assert said["failed"]["message"] == "broken: It broke."
    assert "rollback" in said["refused"]["message"]
    assert said["history"]["states"] == 1


async def test_a_page_with_use_stream_is_reloaded_while_its_pod_is_killed(cluster: Cluster, node: Node) -> None:
    async with two_pods(cluster) as pods, balancer(pods.first, pods.second) as url:
        pods.say(*WORDS[:100])
        async with node.running("use_stream.mjs", "page", url=url) as script:
            await script.says("seen")
            pods.say(*WORDS[100:200])
            await script.says("rejoined")
            await pods.kill()
            pods.say(*WORDS[200:])
            pods.finish()
            end = await script.says("end")
        assert (end["types"], end["text"], end["error"]) == (["human", "ai"], ANSWER, None)


async def test_a_page_with_use_stream_replaces_an_answer_that_starts_again(cluster: Cluster, node: Node) -> None:
    author = await cluster.author(generator="nobody", chat="page")
    pod = await cluster.pod()
    await author.write(encode_text("Wrong."))
    async with node.running("use_stream.mjs", "page", str(author.id), url=pod.url) as script:
        assert (await script.says("seen"))["text"] == "Wrong."
        await author.write(orjson.dumps({"type": "reset", "reason": "worker_lost"}), encode_text("Right."), end=True)
        end = await script.says("end")
    assert (end["texts"], end["error"]) == (["Right."], None)
