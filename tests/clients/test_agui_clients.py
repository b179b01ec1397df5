"""AG-UI's own client, `HttpAgent` of `@ag-ui/client`: what it shows, also of an answer whose pod is killed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from bench.packages import INSTALL_SECONDS
from tests.clients.node import Node
from tests.clients.pods import ANSWER, WORDS, two_pods
from tests.support.cluster import Cluster, Tap
from tests.support.wire import STREAM_ID, batches, sent

import baton
from baton.dialects import agui
from baton.dialects.agui_events import Run
from baton.errors import GenerationError
from baton.generators import GenerationRequest
from baton.generators.conversation import messages
from baton.generators.protocol import Yielded
from baton.outcome import Outcome

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 60)

CALL = {"type": "tool_call", "index": 0, "id": "c", "name": "weather", "arguments_delta": "{}"}
HISTORY = b'[{"id":"u","role":"user","content":"Hello"}]'


async def own(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """A generator that runs a tool by itself, and thinks."""
    yield {"type": "reasoning", "delta": "Hm."}
    yield "Let me look."
    yield CALL
    yield {"type": "custom", "name": "progress", "data": 1}
    yield {"type": "tool_result", "id": "c", "result": {"high": 3}}
    yield "It is cold."


async def for_the_client(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """One that has the client run the tool."""
    if any(message["role"] == "tool" for message in messages(request.input)):
        yield "It is cold."
    else:
        yield CALL


async def tired(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """One that fails."""
    yield "Well"
    raise GenerationError("tired", "The model is tired.")


@baton.continues
async def careful(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """One that waits for an approval."""
    yield {"type": "continue", "after": request.so_far.seq}
    if request.run == 1:
        yield CALL
        yield {"type": "tool_approval", "id": "c"}
        yield {"type": "wait", "for": {"type": "approval", "calls": ["c"]}}
    else:
        answer = await request.receive(0)
        yield {"type": "tool_result", "id": "c", "result": answer["approved"]}
        yield "Done."


async def run(cluster: Cluster, node: Node, scenario: str, generator: Any) -> list[dict[str, Any]]:
    pod = await cluster.pod()
    await cluster.worker({"agent": generator})
    async with node.running("agui.mjs", scenario, f"{pod.url}/v1/ag-ui/agent") as script:
        return [said for said in await script.rest() if said["event"] != "text"]


def contents(said: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(message["role"], message.get("content")) for message in said["messages"]]


async def test_an_answer_with_tools_of_the_generator(cluster: Cluster, node: Node) -> None:
    (done,) = await run(cluster, node, "send", own)
    assert contents(done) == [
        ("user", "Hello"),
        ("reasoning", "Hm."),
        ("assistant", "Let me look."),
        ("tool", '{"high":3}'),
        ("assistant", "It is cold."),
    ]
    assert (done["ended"], done["pending"], done["thrown"]) == ("success", [], None)
    assert done["custom"] == [["progress", 1]]


async def test_a_tool_of_the_client(cluster: Cluster, node: Node) -> None:
    called, done = await run(cluster, node, "tools", for_the_client)
    assert called["pending"] == ["c"]
    assert (contents(done)[-1], done["pending"]) == (("assistant", "It is cold."), [])


async def test_a_failure_is_an_error(cluster: Cluster, node: Node) -> None:
    (done,) = await run(cluster, node, "send", tired)
    assert (done["error"], done["ended"]) == ("tired: The model is tired.", None)


async def test_a_wait_is_an_interrupt_and_a_reloaded_page_has_all(cluster: Cluster, node: Node) -> None:
    asked, done, reloaded = await run(cluster, node, "interrupt", careful)
    assert asked["ended"] == "interrupt"
    assert [interrupt["toolCallId"] for interrupt in asked["interrupts"]] == ["c"]
    assert (done["ended"], done["interrupts"], contents(done)[-1]) == ("success", [], ("assistant", "Done."))
    assert reloaded["messages"] == done["messages"]


async def test_a_refusal_is_readable(cluster: Cluster, node: Node) -> None:
    pod = await cluster.pod()
    async with node.running("agui.mjs", "send", f"{pod.url}/v1/ag-ui/nobody") as script:
        (done,) = await script.rest()
    assert done["thrown"].startswith("HTTP 422: {")
    assert "unknown_generator" in done["thrown"]


async def test_a_killed_pod_is_no_success_and_a_replay_is_whole(cluster: Cluster, node: Node) -> None:
    async with two_pods(cluster) as pods:
        addresses = (f"{url}/v1/ag-ui/tap" for url in (pods.first, pods.second))
        async with node.running("agui.mjs", "killed", *addresses) as script:
            pods.say(*WORDS[:5])
            await script.says("text")
            await pods.kill()
            cut = await script.says("cut")
            assert (cut["ended"], bool(cut["thrown"])) == (None, True)
            pods.say(*WORDS[5:])
            pods.finish()
            for way in ("connected", "again"):
                whole = await script.says(way)
                assert (whole["ended"], whole["thrown"]) == ("success", None)
                assert contents(whole) == [("user", "Hello"), ("assistant", ANSWER)]
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 1


async def test_a_page_stops_its_run(cluster: Cluster, node: Node) -> None:
    pod, tap = await cluster.pod(), Tap()
    await cluster.worker({"agent": tap}, flush_interval_milliseconds=5)
    async with node.running("agui.mjs", "stop", f"{pod.url}/v1/ag-ui/agent") as script:
        tap.let("Well")
        await script.says("text")
        script.hears("stop")
        done = await script.says("done")
    assert (done["ended"], contents(done)[-1]) == ("cancelled", ("assistant", "Well"))


async def test_a_restarted_answer_replaces_what_the_page_has(node: Node, tmp_path: Path) -> None:
    log: list[Any] = [{"type": "reasoning", "delta": "x"}, "a", CALL, {"type": "reset", "reason": "worker_lost"}]
    log += [{"type": "reasoning", "delta": "y"}, "b", Outcome.completed("stop")]
    body = sent(agui.AG_UI, agui.begin(Run("t", "r", STREAM_ID.hex, HISTORY), str(STREAM_ID)), batches(log))
    (tmp_path / "body").write_bytes(body)
    async with node.running("agui.mjs", "fed", str(tmp_path / "body")) as script:
        (done,) = [said for said in await script.rest() if said["event"] == "done"]
    assert (done["ended"], done["thrown"]) == ("success", None)
    assert contents(done) == [("user", "Hello"), ("reasoning", "y"), ("assistant", "b")]
