"""What a person copies from the pages about clients works."""

from __future__ import annotations

import asyncio
import re
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from tests.clients.balancer import HANGS_UP, LOSES_THE_ANSWER, SAYS_503, balancer
from tests.clients.documentation import code_of, languages_of, printed_by, rest_of, running
from tests.clients.node import AI_SDK, CLIENT_PAGES, CLIENTS, HERE, documented
from tests.clients.pods import ANSWER, WORDS, two_pods
from tests.support.cluster import Cluster
from tests.support.logbook import DEADLINE_SECONDS

TEXT = "An answer that outlives its machine."


async def words(request: Any, /) -> AsyncGenerator[Any, None]:
    yield {"type": "reasoning", "delta": "hm"}
    for word in TEXT.split(" "):
        yield word if word == "An" else f" {word}"


async def point(request: Any, /) -> AsyncGenerator[Any, None]:
    for part in ('{"x": 1', ', "y": 2}'):
        yield part


async def half_of(process: Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE_SECONDS):
        return (await process.stdout.readuntil(WORDS[299].encode())).decode()


@pytest.mark.parametrize(
    "heading",
    [
        "Python: OpenAI's Responses",
        "Python: OpenAI's Chat Completions",
        "Anthropic's Messages",
        "Python: httpx",
        "LangGraph",
    ],
)
async def test_a_python_client_prints_the_answer(cluster: Cluster, heading: str) -> None:
    pod = await cluster.pod()
    await cluster.worker({"replay": words})
    source = code_of(heading, "python")[0]
    assert await printed_by(sys.executable, "-c", source, url=pod.url) == TEXT


@pytest.mark.parametrize("heading", ["Python: OpenAI's Responses", "Python: httpx"])
async def test_a_python_client_continues_after_a_killed_pod_and_failed_retries(cluster: Cluster, heading: str) -> None:
    source = code_of(heading, "python")[0]
    troubles: list[bytes] = []
    async with (
        two_pods(cluster) as pods,
        balancer(pods.first, pods.second, troubles=troubles) as url,
        running(sys.executable, "-c", source, url=url) as client,
    ):
        pods.say(*WORDS[:300])
        half = await half_of(client)
        troubles += [HANGS_UP, SAYS_503]
        await pods.kill()
        pods.say(*WORDS[300:])
        pods.finish()
        assert half + await rest_of(client) == ANSWER
        assert troubles == []


@pytest.mark.slow
async def test_repeating_a_create_makes_one_response(cluster: Cluster) -> None:
    source = code_of("Python: OpenAI's Responses", "python")[0]
    pod = await cluster.pod()
    await cluster.worker({"replay": words})
    troubles = [LOSES_THE_ANSWER]
    async with balancer(pod.url, troubles=troubles) as url:
        assert await printed_by(sys.executable, "-c", source, url=url) == TEXT
    assert troubles == []
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 1


async def test_a_final_refusal_ends_the_python_clients_at_once(cluster: Cluster) -> None:
    pod = await cluster.pod()  # and nobody who knows `nobody`
    source = code_of("Python: OpenAI's Responses", "python")[0].replace('"replay"', '"nobody"')
    async with running(sys.executable, "-c", source, url=pod.url) as client, asyncio.timeout(DEADLINE_SECONDS):
        out, err = await client.communicate()
    assert (client.returncode, out) == (1, b"")
    assert b"openai.NotFoundError" in err


@pytest.mark.slow
async def test_a_completion_that_loses_its_pod_raises(cluster: Cluster) -> None:
    source = code_of("Python: OpenAI's Chat Completions", "python")[0]
    async with two_pods(cluster) as pods, running(sys.executable, "-c", source, url=pods.first) as client:
        pods.say(*WORDS[:300])
        half = await half_of(client)
        await pods.kill()
        async with asyncio.timeout(DEADLINE_SECONDS):
            rest, err = await client.communicate()
    assert half + rest.decode() == "".join(WORDS[:300])
    assert client.returncode == 1
    assert b"openai.APIConnectionError" in err


async def test_partial_structured_output_is_shown_as_it_grows(cluster: Cluster) -> None:
    pod = await cluster.pod()
    await cluster.worker({"replay": point})
    source = code_of("Python: OpenAI's Responses", "python")[1]
    printed = await printed_by(sys.executable, "-c", source, url=pod.url)
    assert printed.splitlines() == ["{'x': 1}", "{'x': 1, 'y': 2}", "x=1 y=2"]


@pytest.mark.parametrize("approved", [False, True])
async def test_a_tool_runs_if_the_user_approves_it(cluster: Cluster, approved: bool) -> None:
    module: dict[str, Any] = {}
    exec(code_of("Approvals", "python", AI_SDK)[0], module)
    pod = await cluster.pod()
    await cluster.worker({"agent": module["generate"]})
    user = {"id": "u", "role": "user", "parts": [{"type": "text", "text": "Delete it."}]}
    body = {"id": "1", "model": "agent", "messages": [user]}
    asked = await cluster.client.post(f"{pod.url}/v1/ai-sdk/chat", json=body)
    approval_id = re.findall('"approvalId":"([^"]+)"', asked.text)[0]
    part = {"type": "tool-delete", "toolCallId": "c1", "state": "approval-responded", "input": {}}
    part["approval"] = {"id": approval_id, "approved": approved}
    body["messages"] = [user, {"id": "a", "role": "assistant", "parts": [part]}]
    answer = await cluster.client.post(f"{pod.url}/v1/ai-sdk/chat", json=body)
    assert ("Done: Deleted a.txt." in answer.text) == approved
    assert ("the user did not allow this call" in answer.text) != approved


def test_all_documented_code_is_run() -> None:
    """Each module for node by a script here; the rest by the tests of this file, and the page by a browser."""
    modules = documented(*CLIENT_PAGES)
    scripts = [*(script.read_text() for script in HERE.glob("*.mjs")), *modules.values()]
    imported = set(re.findall(r'from "\./(\S+)"', "".join(scripts)))
    assert modules.keys() <= imported
    languages = {"sh": 4, "html": 2, "python": 7, "js": len(modules), "jsx": 3, "ts": 1}
    assert languages_of(*CLIENT_PAGES) == languages


async def test_curl_prints_the_answer(cluster: Cluster) -> None:
    pod = await cluster.pod()
    await cluster.worker({"replay": words})
    (command,) = code_of("curl", "sh", CLIENTS)
    assert await printed_by("sh", "-c", command, url=pod.url) == TEXT
