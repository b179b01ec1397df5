"""The table of AI SDK versions in docs/ai-sdk.md: what it says is what happens in Chromium, with two pods."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

import pytest
from bench.packages import INSTALL_SECONDS
from tests.clients.browsing import needs_chromium
from tests.clients.chat_pages import API, SDKS, ChatPage, answers, ask, chat_page, parts, show
from tests.clients.node import AI_SDK, HERE, Node
from tests.clients.pods import WORDS
from tests.support.cluster import Cluster

pytestmark = [pytest.mark.timeout(INSTALL_SECONDS + 60), needs_chromium]

Outcome = Literal["whole", "doubled", "split", "refused", "lost"]

TEXT: Final = "".join(WORDS[:3])
CALL: Final = {"type": "tool_call", "index": 0, "id": "c", "name": "look_up", "arguments_delta": '{"x":'}
REST: Final = {"type": "tool_call", "index": 0, "arguments_delta": "1}"}
# What a cell says, and what then happens with `useChat` as it is, and with the code for AI SDK 5 and 6.
CELLS: Final[dict[str, tuple[Outcome, Outcome]]] = {
    "yes": ("whole", "whole"),
    "with the code below": ("doubled", "whole"),
    "refused": ("refused", "refused"),
}
COLUMNS: Final = ("send", "stop", "reload", "resume", "client tools")


def table() -> dict[str, dict[str, str]]:
    """The table's rows by their first column, each a mapping from the names of the columns."""
    section = AI_SDK.read_text().split("## Versions\n")[1].split("\n## ")[0]
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in section.splitlines() if line.startswith("|")]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def test_the_table_names_packages_that_fit_together() -> None:
    packages = json.loads((HERE / "package-lock.json").read_text())["packages"]
    assert table().keys() == SDKS.keys()
    for version, sdk in SDKS.items():
        ai = packages[f"node_modules/{sdk.ai}"]
        if sdk.react is None:
            react = ai["dependencies"]["@ai-sdk/react"]  # which is its `ai/react`
        else:
            react = packages[f"node_modules/{sdk.react}"]["version"]
            assert packages[f"node_modules/{sdk.react}"]["dependencies"]["ai"] == ai["version"]
        row = table()[version]
        node = f"{ai['engines']['node'].removeprefix('>=')} or newer"
        assert (row["`ai`"], row["`@ai-sdk/react`"], row["Node"]) == (ai["version"], react, node)


@pytest.mark.parametrize("version", ["3.4", "4"])
async def test_an_old_version_is_refused_with_a_sentence(cluster: Cluster, node: Node, version: str) -> None:
    async with chat_page(cluster, node, version) as page:
        await page.show("{ id: '42', api: API, body: { model: 'tap' } }", API=page.url + API)
        await page.do('chat.append({ role: "user", content: "Hello" }).catch(() => {})')
        state = await page.until("s.error")
        assert "/v1/ai-sdk/v4/chat" in state["error"]
        assert "assistant" not in [message["role"] for message in state["messages"]]
        assert [request["status"] for request in state["requests"]] == [400]
        if version == "4":
            await page.do("chat.experimental_resume()")
            resumed = await page.until("s.requests[1]?.status && s.error?.includes('allows POST')")
            assert resumed["requests"][1]["status"] == 405
        assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 0
    assert {table()[version][column] for column in COLUMNS} == {"refused"}


@pytest.mark.parametrize(("version", "snippet"), [("5", False), ("5", True), ("6", False), ("6", True), ("7", False)])
async def test_the_table_matches_what_happens(cluster: Cluster, node: Node, version: str, snippet: bool) -> None:
    said = {column: CELLS[table()[version][column]][snippet] for column in COLUMNS}
    async with chat_page(cluster, node, version) as page:
        options = answers(version, snippet=snippet)
        happened = {
            column: await action(page, options.replace("42", column), snippet) for column, action in ACTIONS.items()
        }
    assert happened == said


async def send(page: ChatPage, options: str, _snippet: bool) -> Outcome:
    await show(page, options)
    await ask(page, *WORDS[:3])
    page.pods.finish()
    return outcome(await over(page), [TEXT])


async def stop(page: ChatPage, options: str, _snippet: bool) -> Outcome:
    await show(page, options)
    await ask(page, *WORDS[:3])
    await page.do("chat.stop()")
    state = await over(page)
    assert state["messages"][-1]["metadata"]["status"] == "cancelled"
    return outcome(state, [TEXT])


async def reload(page: ChatPage, options: str, _snippet: bool) -> Outcome:
    """In the middle of a tool call, which is where versions differ."""
    await show(page, options)
    half = await ask(page, *WORDS[:3], CALL)
    await show(page, options, half["messages"])
    page.pods.say(REST)
    page.pods.finish()
    return outcome(await over(page), [TEXT, "input-available"])


async def resume(page: ChatPage, options: str, snippet: bool) -> Outcome:
    """After the death of a pod, in the middle of a tool call."""
    await show(page, options)
    await ask(page, *WORDS[:3], CALL)
    await page.pods.kill()
    await page.until("s.status === 'error'")
    await page.do(f"{'chat.setMessages(resumable);' if snippet else ''} chat.resumeStream()")
    page.pods.say(REST)
    page.pods.finish()
    return outcome(await over(page), [TEXT, "input-available"])


async def client_tools(page: ChatPage, options: str, _snippet: bool) -> Outcome:
    """The page answers a call, and sends the message by itself: the answer continues it."""
    options = f"{{ ...{options}, sendAutomaticallyWhen: ai.lastAssistantMessageIsCompleteWithToolCalls }}"
    await show(page, options)
    await ask(page, *WORDS[:3], CALL)
    page.pods.say(REST)
    page.pods.finish()
    await over(page)
    await page.do('chat.addToolOutput({ tool: "look_up", toolCallId: "c", output: 1 })')
    page.pods.say(*WORDS[3:6])
    page.pods.finish()
    state = await page.until("s.status === 'ready' && JSON.stringify(s.messages).includes('word5')")
    if len(state["messages"]) > 2:
        return "split"
    return outcome(state, [TEXT, "output-available", "".join(WORDS[3:6])])


ACTIONS: Final[dict[str, Callable[[ChatPage, str, bool], Awaitable[Outcome]]]] = {
    "send": send,
    "stop": stop,
    "reload": reload,
    "client tools": client_tools,
    "resume": resume,
}


async def over(page: ChatPage) -> dict[str, Any]:
    """Wait for the end of an answer."""
    return await page.until("s.messages.at(-1).metadata?.status && ['ready', 'error'].includes(s.status)")


def outcome(state: dict[str, Any], whole: list[str]) -> Outcome:
    shown = parts(state)
    if state["error"]:
        return "lost"
    return "whole" if shown == whole else "doubled" if shown[-len(whole) :] == whole else "lost"
