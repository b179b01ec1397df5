"""The Vercel AI SDK's own clients, through pods that are killed."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

import orjson
import pytest
from bench.packages import INSTALL_SECONDS
from tests.clients.balancer import balancer
from tests.clients.node import Node
from tests.clients.pods import ANSWER, WORDS, two_pods
from tests.support.cluster import Cluster, Tap
from tests.support.wire import batches
from tests.unit.dialects.test_aisdk import CASES, OPENING, read

from baton.errors import GenerationError
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 60)

HALF = WORDS[:300]


async def test_use_chat_shows_a_cut_as_an_error_and_resumes_on_another_pod(cluster: Cluster, node: Node) -> None:
    async with (
        two_pods(cluster) as pods,
        balancer(pods.first, pods.second) as url,
        node.running("use_chat.mjs", "tap", url=url) as page,
    ):
        pods.say(*HALF)
        await page.says("half")
        await pods.kill()
        broken = await page.says("broken")
        assert (broken["status"], broken["text"]) == ("error", "".join(HALF))
        assert page.said[-2] == {"event": "finish", "isError": True, "isAbort": False}
        await page.says("resumed")
        pods.say(*WORDS[300:])
        pods.finish()
        whole = await page.says("whole")
        user, answer = whole["messages"]
        assert whole["status"] == "ready"
        assert (user["role"], answer["role"]) == ("user", "assistant")
        assert [part["type"] for part in answer["parts"]] == ["step-start", "text"]
        assert answer["parts"][1] == {"type": "text", "text": ANSWER, "state": "done"}
        row = await cluster.pool.fetchrow("SELECT id, input FROM baton.stream")
        assert row is not None
        usage = {"inputTokens": 1, "outputTokens": len(WORDS)}
        assert answer["metadata"] == {"streamId": str(row["id"]), "usage": usage, "status": "completed"}
        assert json.loads(row["input"]) == {"messages": [{"role": "user", "content": "Hello"}]}
        later = (await page.rest())[-1]
        assert (later["status"], later["messages"]) == ("ready", whole["messages"])


async def test_use_chat_stops_on_the_server_and_shows_the_servers_error(cluster: Cluster, node: Node) -> None:
    pod = await cluster.pod()
    tap = Tap()
    tap.let(*HALF)
    await cluster.worker({"tap": tap, "failing": failing})
    async with node.running("use_chat_stop.mjs", "tap", "failing", url=pod.url) as page:
        assert (await page.says("asked"))["status"] == 202
        finish = await page.says("finish")
        assert finish == {"event": "finish", "isError": False, "isAbort": False, "finishReason": "other"}
        stopped = await page.says("stopped")
        assert tap.cancelled.is_set()
        assert stopped["status"] == "ready"
        assert stopped["parts"][-1] == {"type": "text", "text": "".join(HALF), "state": "done"}
        assert (await page.says("failed"))["error"] == "The model is tired. (tired)"
        assert "no generator called 'nobody'" in (await page.says("refused"))["error"]


@pytest.mark.parametrize("cut", [False, True])
async def test_use_object_shows_partial_objects_and_treats_a_cut_as_an_error(
    cluster: Cluster, node: Node, cut: bool
) -> None:
    pod = await cluster.pod()
    forecast = {"city": "Oslo", "days": [{"high": 3}, {"high": 5}]}

    async def answering(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        text = orjson.dumps(forecast).decode()
        assert request.input == {"city": "Oslo"}
        yield text[:17]
        yield text[17:-1]
        if cut:
            raise GenerationError("tired", "The model is tired.")
        yield text[-1]

    await cluster.worker({"forecast": answering})
    async with node.running("use_object.mjs", "forecast", url=pod.url) as page:
        said = await page.rest()
    partial = [line["object"] for line in said if line["event"] == "partial"]
    assert partial[-1] == forecast
    finished = [line for line in said if line["event"] == "finish"]
    if cut:
        assert finished == []
        assert said[-1]["error"]
    else:
        assert finished == [{"event": "finish", "object": forecast}]
        assert said[-1] == {"event": "end"}


async def test_workflow_chat_transport_reconnects_until_it_has_every_chunk_once(cluster: Cluster, node: Node) -> None:
    async with (
        two_pods(cluster) as pods,
        balancer(pods.first, pods.second) as url,
        node.running("workflow.mjs", "tap", url=url) as client,
    ):
        pods.say(*HALF)
        await client.says("half")
        await pods.kill()
        again = await client.says("asked")
        assert (again["url"].partition("?")[2], again["status"]) == (f"startIndex={len(HALF) + 3}", 200)
        pods.say(*WORDS[300:])
        pods.finish()
        chunks = (await client.says("whole"))["chunks"]
        assert [chunk["delta"] for chunk in chunks if "delta" in chunk] == WORDS
        assert [chunk["type"] for chunk in (*chunks[:3], *chunks[-4:])] == [
            *("start", "start-step", "text-start"),
            *("message-metadata", "text-end", "finish-step", "finish"),
        ]
        replayed = (await client.says("again"))["chunks"]
        assert replayed == chunks
        tail = await client.says("tail")
        # Five chunks before the end is inside the text, of which the transport shows nothing without its beginning.
        assert [line["tail"] for line in client.said if line["event"] == "asked"][-1] == "4"
        assert tail["chunks"] == chunks
    ends = [line["chunkIndex"] for line in client.said if line["event"] == "end"]
    assert ends == [len(chunks)] * 3


async def test_every_chunk_is_valid_for_the_sdks_schema_and_reader(node: Node) -> None:
    bodies = [read(batches(events)).decode() for events, _ in CASES.values()]
    async with node.running("read_chunks.mjs", json.dumps(bodies)) as script:
        read_back = await script.rest()
    for (name, (_, expected)), told in zip(CASES.items(), read_back, strict=True):
        assert told["chunks"] == OPENING + expected, name
        errors = [chunk["errorText"] for chunk in expected if chunk["type"] == "error"]
        assert told["errors"] == errors, name
    interleaved = read_back[list(CASES).index("calls that interleave")]["message"]["parts"]
    assert [(part["type"], part.get("input"), part.get("output")) for part in interleaved if "input" in part] == [
        ("tool-f", {}, 1),
        ("tool-g", [], None),
    ]


async def failing(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    yield "I "
    raise GenerationError("tired", "The model is tired.")
