"""Pages of AI SDK 5, 6 and 7 that send their last message only: the model is asked what it would be asked with all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from bench.packages import INSTALL_SECONDS
from tests.clients.node import Node
from tests.clients.pods import two_pods
from tests.support.cluster import Cluster, RunningPod

from baton.errors import GenerationError
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 120)

CALL = {"type": "tool_call", "index": 0, "id": "c", "name": "weather", "arguments_delta": '{"city":"Oslo"}'}
VERSIONS = ["5", "6", "7"]
# The documented code, the SDK's guide without its trigger, and with it.
FORMS = ["documented", "guide", "trigger"]


class Model:
    """A generator that answers by the last message, and keeps what it was asked with."""

    def __init__(self) -> None:
        self.inputs: list[Any] = []
        self.rest = asyncio.Event()

    async def __call__(self, request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        self.inputs.append(request.input)
        last = request.input["messages"][-1]
        said = last["content"]
        if last["role"] == "tool":
            yield {"type": "reasoning", "delta": "Hm."}
            yield "It is cold."
        elif said == "Call.":
            yield CALL | {"id": "of the page"}
            yield {"type": "finish", "finish_reason": "tool_calls"}
        elif said == "Run.":
            yield "One moment."
            yield CALL
            yield {"type": "tool_result", "id": "c", "result": {"degrees": 3}}
            yield "Three."
        elif said == "Fail.":
            yield "So far"
            yield CALL | {"id": "broken", "arguments_delta": '{"city":"Os'}
            raise GenerationError("tired", "No more.")
        elif said == "Wait.":
            yield "Half"
            await self.rest.wait()
            yield ", whole"
        else:
            yield f"You said {said}"


async def turns(node: Node, model: Model, pods: tuple[RunningPod, RunningPod], *page_of: str) -> list[Any]:
    """Have a page of that version and form go through all turns; return what the model was asked with."""
    model.inputs, model.rest = [], asyncio.Event()
    async with node.running("turns.mjs", *page_of, "turns", pods[0].url, pods[1].url) as page:
        await page.says("half")
        model.rest.set()
        over = await page.says("over")
        await page.rest()
    assert over["status"] == "ready", over
    return [given["messages"] for given in model.inputs]


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_model_gets_the_same_from_all_messages_and_from_the_last(
    cluster: Cluster, node: Node, version: str
) -> None:
    model, pods = Model(), (await cluster.pod(), await cluster.pod())
    await cluster.worker({"replay": model})
    whole = await turns(node, model, pods, version, "whole")
    assert [len(messages) for messages in whole] == [1, 3, 7, 9, 11, 11, 13, 16, 3, 7, 9]
    for form in FORMS:
        assert await turns(node, model, pods, version, form) == whole, form


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_conversation_continues_after_its_pod_was_killed(cluster: Cluster, node: Node, version: str) -> None:
    async with two_pods(cluster) as pods:
        arguments = (version, "documented", "killed", pods.first, pods.second)
        async with node.running("turns.mjs", *arguments) as page:
            pods.say("You said A")
            pods.tap.end()
            pods.say("Half")
            await page.says("half")
            await pods.kill()
            await page.says("resumed")
            pods.say(", whole")
            pods.tap.end()
            pods.say("You said D")
            pods.tap.end()
            over = await page.says("over")
            await page.rest()
    assert over["status"] == "ready"
    rows = await cluster.pool.fetch("SELECT input FROM baton.stream ORDER BY id")
    asked = [[message["content"] for message in json.loads(row["input"])["messages"]] for row in rows]
    assert asked == [["A"], ["A", "You said A", "Wait."], ["A", "You said A", "Wait.", "Half, whole", "D"]]
