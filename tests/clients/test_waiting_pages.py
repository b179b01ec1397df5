"""Answers that wait for the user of a page: after a reload, answered from another tab, without any process."""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from bench.packages import INSTALL_SECONDS
from tests.clients.balancer import balancer
from tests.clients.node import Node
from tests.clients.pods import two_pods
from tests.faults.servers import BreakablePostgres
from tests.support.cluster import Cluster, Tap
from tests.support.processes import SERVES, environment, running

import baton
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 120)

CALL = {"type": "tool_call", "index": 0, "id": "c", "name": "weather", "arguments_delta": '{"city":"Oslo"}'}
PARTS = ("type", "text", "state", "toolCallId", "input", "output")


@baton.continues
async def careful(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Ask before its tool runs, and wait for the answer."""
    yield {"type": "continue", "after": request.so_far.seq}
    if request.input["messages"][-1]["content"] == "Thanks.":
        yield "Not at all."
        return
    if request.run == 1:
        yield "Let me see."
        yield CALL
        yield {"type": "tool_approval", "id": "c"}
    answer = await request.receive(0)
    if answer is None:
        yield {"type": "wait", "for": {"type": "approval", "calls": ["c"]}}
        return
    yield {"type": "tool_result", "id": "c", "result": 3, "denied": not answer["approved"]}
    yield "Done."


def shown(said: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """What a page shows of its messages."""
    return [
        [{name: part[name] for name in PARTS if name in part} for part in message["parts"]]
        for message in said["messages"]
    ]


@pytest.mark.parametrize("version", ["6", "7"])
@pytest.mark.parametrize("decision", ["approve", "deny"])
async def test_use_chat_shows_a_question_until_any_tab_has_answered_it(
    cluster: Cluster, node: Node, version: str, decision: str
) -> None:
    one, two = await cluster.pod(), await cluster.pod()
    await cluster.worker({"careful": careful})
    async with node.running("waiting.mjs", version, decision, one.url, two.url) as pages:
        asked = await pages.says("asked")
        assert await cluster.pool.fetchval("SELECT status FROM baton.stream") == "waiting"
        pages.hears("")
        reloaded, answered = await pages.says("reloaded"), await pages.says("answered")
        late = await pages.says("late")
        replayed, following = await pages.says("replayed"), await pages.says("next")
        await pages.rest()
    assert shown(reloaded) == shown(asked)
    assert asked["messages"][1]["metadata"]["waiting"]["for"] == {"type": "approval", "calls": ["c"]}
    assert "status" not in asked["messages"][1]["metadata"]
    check(answered, replayed, decision)
    # A tab that answers after the end is told to load the chat again.
    assert late["status"] == "error"
    assert "Load the chat again" in late["error"]
    assert following["messages"][-1]["parts"][-1]["text"] == "Not at all."
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 2


def check(answered: dict[str, Any], replayed: dict[str, Any], decision: str) -> None:
    """One message with the outcome, live and replayed; nothing for the page to run."""
    (user, message), status = shown(answered), answered["status"]
    assert (status, answered.get("error"), answered["called"]) == ("ready", None, [])
    assert [part["type"] for part in message] == ["step-start", "text", "tool-weather", "step-start", "text"]
    tool = message[2]
    assert tool["state"] == ("output-available" if decision == "approve" else "output-denied")
    assert tool.get("output") == (3 if decision == "approve" else None)
    assert shown(replayed) == [user, message]
    for said in (answered, replayed):
        assert said["messages"][1]["metadata"]["status"] == "completed"
        assert said["messages"][1]["metadata"]["waiting"] is None


GENERATORS = """
import os
import baton

def weather():
    with open(os.environ["RAN"], "a") as ran:
        ran.write("weather\\n")
    return 3

@baton.continues
async def careful(request):
    yield {"type": "continue", "after": request.so_far.seq}
    if not request.state:
        yield "Let me see."
        yield {"type": "tool_call", "index": 0, "id": "c", "name": "weather", "arguments_delta": '{"city":"Oslo"}'}
        yield {"type": "tool_approval", "id": "c"}
        yield {"type": "wait", "for": {"type": "approval", "calls": ["c"]}, "state": "asked"}
        return
    assert (await request.receive())["approved"]
    yield {"type": "tool_result", "id": "c", "result": await request.step("weather", weather)}
    yield "Done."
"""


@pytest.mark.parametrize("version", ["6", "7"])
async def test_a_question_outlives_every_process_and_a_crash_of_postgres(
    breakable: BreakablePostgres, breakable_cluster: Cluster, node: Node, tmp_path: Path, version: str
) -> None:
    cluster, ran = breakable_cluster, tmp_path / "ran"
    (tmp_path / "careful_generators.py").write_text(GENERATORS)
    env = environment(
        BATON_DATABASE_URL=cluster.dsn,
        BATON_ALLOW_ANONYMOUS="true",
        BATON_PORT="0",
        BATON_GENERATORS="careful=careful_generators:careful",
        PYTHONPATH=str(tmp_path),
        RAN=str(ran),
    )
    async with running("serve", env=env) as pod, running("worker", env=env) as worker:
        url = (await pod.said(SERVES))[2]
        async with node.running("waiting.mjs", version, "approve", url, url) as pages:
            await pages.says("asked")
            for process in (pod, worker):
                process.signal(signal.SIGKILL)
                await process.ends()
            await breakable.crash()
            assert not ran.exists()
            async with running("serve", env=env) as another, running("worker", env=env):
                pages.hears((await another.said(SERVES))[2])
                await pages.says("reloaded")
                answered, replayed = await pages.says("answered"), await pages.says("replayed")
                await pages.rest()
    check(answered, replayed, "approve")
    assert ran.read_text() == "weather\n"


async def test_the_workflow_transport_continues_after_a_wait_on_another_pod(cluster: Cluster, node: Node) -> None:
    tap = Tap()

    @baton.continues
    async def slow(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        async for said in careful(request):
            if said == "Done.":
                yield "It is "
                await tap.started.wait()
            yield said

    await cluster.worker({"careful": slow})
    async with (
        two_pods(cluster) as pods,
        balancer(pods.first, pods.second) as url,
        node.running("waiting_workflow.mjs", url=url) as page,
    ):
        asked = await page.says("asked")
        assert asked["message"]["parts"][2]["state"] == "approval-requested"
        await page.says("half")
        await pods.kill()
        tap.started.set()
        answered, replayed = await page.says("answered"), await page.says("replayed")
        await page.rest()
    kinds = ["step-start", "text", "tool-weather", "step-start", "text"]
    for said in (answered, replayed):
        assert [part["type"] for part in said["message"]["parts"]] == kinds
        assert said["message"]["parts"][-1]["text"] == "It is Done."
    # The chunks of the run after the wait are counted from there.
    assert answered["asked"][:2] == ["", ""]
    assert answered["asked"][2].startswith("/run_ID_4/stream?startIndex=")
