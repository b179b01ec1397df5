"""Pages of AI SDK 5, 6 and 7 that load a chat's messages from the server: they are those that the page had."""

from __future__ import annotations

from typing import Any

import pytest
from bench.packages import INSTALL_SECONDS
from tests.clients.node import Node
from tests.clients.test_aisdk_last_message import Model
from tests.support.cluster import Cluster

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 120)


@pytest.mark.parametrize("version", ["5", "6", "7"])
async def test_a_page_loads_the_messages_that_it_had(cluster: Cluster, node: Node, version: str) -> None:
    model, pod = Model(), await cluster.pod()
    await cluster.worker({"replay": model})
    async with node.running("loaded_chat.mjs", version, pod.url) as page:
        ended = await page.says("ended")
        assert_same(ended)
        # The answer that was regenerated is there once, and the page's own ids are.
        assert [one["role"] for one in ended["stored"]] == ["user", "assistant"] * 5
        await page.says("half")
        model.rest.set()
        assert_same(await page.says("resumed"))
        over = await page.says("over")
        assert_same(over)
        assert [one["role"] for one in over["stored"]] == ["user", "assistant"] * 7
        await page.rest()


def assert_same(found: dict[str, Any]) -> None:
    for one, other in zip(found["page"], found["stored"], strict=True):
        assert plain(one) == plain(other)


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """Leave out what only the SDK's own later requests need: ids of reasoning, and notes on a call without its end."""
    parts = []
    for part in message["parts"]:
        if part["type"] == "reasoning":
            parts.append({name: part[name] for name in ("type", "text", "state")})
        elif part.get("state") == "input-streaming":
            parts.append({name: part[name] for name in ("type", "toolCallId", "state", "input")})
        else:
            parts.append(part)
    return message | {"parts": parts}
