"""Pages of AI SDK 5, 6 and 7 with tools: of the page's own, of the generator's, and those that the user must allow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from bench.packages import INSTALL_SECONDS
from tests.clients.node import Node
from tests.clients.pods import two_pods
from tests.support.cluster import Cluster

from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 60)

CALL = {"type": "tool_call", "index": 0, "id": "c", "name": "weather", "arguments_delta": '{"city":"Oslo"}'}
VERSIONS = ["5", "6", "7"]
PARTS = ("type", "text", "state", "toolCallId", "input", "output")


class Generators:
    """What the pages ask, and what they were asked with."""

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []
        self.rest = asyncio.Event()

    async def client(self, request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        """Have the page run the tool."""
        self.requests.append(request)
        last = request.input["messages"][-1]
        if last["role"] == "tool":
            yield "It is "
            await self.rest.wait()
            yield "cold."
        elif last["content"] == "Thanks.":
            yield "Not at all."
        else:
            yield {"type": "reasoning", "delta": "Hm."}
            yield CALL
            yield {"type": "finish", "finish_reason": "tool_calls"}

    async def own(self, request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        """Run the tool, and end with its result."""
        self.requests.append(request)
        yield CALL
        yield {"type": "tool_result", "id": "c", "result": 3}

    async def stopped(self, request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        """Run a tool, and wait in the call of another."""
        self.requests.append(request)
        yield CALL | {"id": "before"}
        yield {"type": "tool_result", "id": "before", "result": 3}
        yield CALL | {"index": 1}
        await asyncio.Event().wait()

    async def asking(self, request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        """Ask before a tool is run."""
        self.requests.append(request)
        if any(message["role"] == "assistant" for message in request.input["messages"]):
            for approval in request.approvals:
                yield {"type": "tool_result", "id": approval.call_id, "result": approval.arguments}
            yield "Done."
        else:
            yield CALL
            yield {"type": "tool_approval", "id": "c"}

    def by_name(self) -> dict[str, Any]:
        return {
            "client": self.client,
            "own": self.own,
            "stopped": self.stopped,
            "asking": self.asking,
            "denying": self.asking,
        }


@pytest.fixture
async def generators(cluster: Cluster) -> Generators:
    made = Generators()
    await cluster.worker(made.by_name())
    return made


def shown(said: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """What a page shows of its messages."""
    return [
        [{name: part[name] for name in PARTS if name in part} for part in message["parts"]]
        for message in said["messages"]
    ]


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_page_tool_continues_its_message_live_and_after_a_reload(
    cluster: Cluster, node: Node, generators: Generators, version: str
) -> None:
    one, two = await cluster.pod(), await cluster.pod()
    async with node.running("tools.mjs", version, "client", one.url, two.url) as page:
        await page.says("half")
        generators.rest.set()
        live, reloaded, later = await page.says("live"), await page.says("reloaded"), await page.says("next")
        await page.rest()
    assert [message["role"] for message in live["messages"]] == ["user", "assistant"]
    assert [part["type"] for part in live["messages"][1]["parts"]] == [
        *("step-start", "reasoning", "tool-weather", "step-start", "text"),
    ]
    assert shown(live) == shown(reloaded)
    assert live["messages"][1]["metadata"] == reloaded["messages"][1]["metadata"]
    assert live["messages"][1]["metadata"]["status"] == "completed"
    assert live["called"] == ["c"]
    assert (later["status"], len(generators.requests)) == ("ready", 3)
    sent = generators.requests[-1].input["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool", "assistant", "user"]
    calls = [call["id"] for message in sent for call in message.get("tool_calls", [])]
    assert calls == ["c"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_continued_message_survives_its_pod(
    cluster: Cluster, node: Node, generators: Generators, version: str
) -> None:
    async with (
        two_pods(cluster) as pods,
        node.running("tools.mjs", version, "killed", pods.first, pods.second, "client") as page,
    ):
        await page.says("half")
        await pods.kill()
        await page.says("resumed")
        generators.rest.set()
        reloaded = await page.says("reloaded")
        await page.rest()
    assert [(part["type"], part.get("text", part.get("output"))) for part in reloaded["messages"][1]["parts"]] == [
        ("step-start", None),
        ("reasoning", "Hm."),
        ("tool-weather", 3),
        ("step-start", None),
        ("text", "It is cold."),
    ]
    assert (len(reloaded["messages"]), reloaded["called"], len(generators.requests)) == (2, ["c"], 2)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_tool_run_by_the_generator_is_requested_once(
    cluster: Cluster, node: Node, generators: Generators, version: str
) -> None:
    pod = await cluster.pod()
    async with node.running("tools.mjs", version, "own", pod.url) as page:
        asked = await page.says("asked")
        await page.rest()
    assert (asked["status"], asked["called"]) == ("ready", [])
    assert len(generators.requests) == 1


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_stopped_answer_with_a_result_is_not_sent_back(
    cluster: Cluster, node: Node, generators: Generators, version: str
) -> None:
    pod = await cluster.pod()
    async with node.running("tools.mjs", version, "stopped", pod.url) as page:
        stopped = await page.says("stopped")
        await page.rest()
    assert (stopped["status"], stopped.get("error"), stopped["called"]) == ("ready", None, [])
    assert len(generators.requests) == 1
    assert stopped["messages"][1]["parts"][-1] == {"type": "step-start"}


@pytest.mark.parametrize("version", ["6", "7"])
@pytest.mark.parametrize("scenario", ["asking", "denying"])
async def test_a_tool_runs_if_the_user_approves_it(
    cluster: Cluster, node: Node, generators: Generators, version: str, scenario: str
) -> None:
    pod = await cluster.pod()
    state = "output-available" if scenario == "asking" else "output-denied"
    async with node.running("tools.mjs", version, scenario, pod.url) as page:
        await page.says("asked")
        answered = await page.says("answered")
        await page.rest()
    assert [message["role"] for message in answered["messages"]] == ["user", "assistant"]
    (tool,) = [part for part in answered["messages"][1]["parts"] if part["type"] == "tool-weather"]
    assert (tool["state"], answered["status"], answered["called"]) == (state, "ready", [])
    assert tool.get("output") == ({"city": "Oslo"} if scenario == "asking" else None)
    assert len(generators.requests) == 2


async def test_ai_sdk_5_cannot_ask_and_shows_an_error_instead(
    cluster: Cluster, node: Node, generators: Generators
) -> None:
    pod = await cluster.pod()
    async with node.running("tools.mjs", "5", "asking", pod.url) as page:
        asked = await page.says("asked")
        await page.rest()
    assert asked["status"] == "error"
    assert "tool-approval-request" in asked["error"]
    assert (len(generators.requests), asked["called"]) == (1, [])
