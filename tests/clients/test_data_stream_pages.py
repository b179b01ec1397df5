"""Pages with `useChat` of AI SDK 3.4 and 4 in Chromium, at the address for their protocol."""

from __future__ import annotations

from typing import Any

import pytest
from bench.packages import INSTALL_SECONDS
from tests.clients.browsing import needs_chromium
from tests.clients.chat_pages import ChatPage, chat_page
from tests.clients.node import Node
from tests.clients.pods import WORDS
from tests.support.cluster import Cluster

from baton.generators.conversation import messages

pytestmark = [pytest.mark.timeout(INSTALL_SECONDS + 60), needs_chromium]

VERSIONS = pytest.mark.parametrize("version", ["3.4", "4"])
CALL = {"type": "tool_call", "index": 0, "id": "c", "name": "look_up", "arguments_delta": '{"x":1}'}
HELLO = 'chat.append({ role: "user", content: "Hello" }).catch(() => {})'


async def show(page: ChatPage, version: str, options: str = "") -> None:
    api = f"{page.url}/v1/ai-sdk/v{version[0]}/chat"
    await page.show(f"{{ id: '42', api: API, body: {{ model: 'tap' }}, {options} }}", API=api)


def said(state: dict[str, Any]) -> str:
    return "".join(message["content"] for message in state["messages"] if message["role"] == "assistant")


def settled(more: str) -> str:
    """`status` is new in AI SDK 4."""
    return f"(s.status ?? 'ready') === 'ready' && {more}"


@VERSIONS
async def test_a_page_shows_an_answer_with_the_tools_of_the_generator(
    cluster: Cluster, node: Node, version: str
) -> None:
    async with chat_page(cluster, node, version) as page:
        await show(page, version, "onToolCall: () => (window.ran = true)")
        await page.do(HELLO)
        page.pods.say("Well. ", CALL, {"type": "tool_result", "id": "c", "result": 3}, "Three.")
        page.pods.finish()
        state = await page.until(settled("JSON.stringify(s.messages).includes('Three.')"))
        (call,) = [call for message in state["messages"] for call in message.get("toolInvocations") or []]
        assert (call["state"], call["result"], call["args"]) == ("result", 3, {"x": 1})
        assert said(state).replace(" ", "") == "Well.Three."
        assert not await page.page.evaluate("() => !!window.ran")
        assert state["error"] is None


@VERSIONS
async def test_a_page_runs_its_own_tool_and_sends_the_result(cluster: Cluster, node: Node, version: str) -> None:
    async with chat_page(cluster, node, version) as page:
        await show(page, version, "maxSteps: 3, onToolCall: ({ toolCall }) => toolCall.args.x + 1")
        page.pods.say(CALL)
        page.pods.finish()
        await page.do(HELLO)
        await page.until("s.requests[1]")
        page.pods.say("Two.")
        page.pods.finish()
        state = await page.until(settled("JSON.stringify(s.messages).includes('Two.')"))
        assert [request["status"] for request in state["requests"]] == [200, 200]
        given = messages(page.pods.tap.requests[1].input)
        assert given[-1] == {"role": "tool", "tool_call_id": "c", "content": "2"}


@VERSIONS
async def test_a_killed_pod_and_a_failure_are_errors(cluster: Cluster, node: Node, version: str) -> None:
    async with chat_page(cluster, node, version) as page:
        await show(page, version)
        await page.do(HELLO)
        page.pods.say(*WORDS[:3])
        await page.until("JSON.stringify(s.messages).includes('word2')")
        await page.pods.kill()
        cut = await page.until("s.error")
        assert said(cut) == "".join(WORDS[:3])
        page.pods.finish()
        await page.ended()
        await page.load()
        await show(page, version)
        await page.do(HELLO)
        page.pods.say("Well")
        page.pods.fail("The model is tired.")
        assert (await page.until("s.error"))["error"] == "The model is tired. (tired)"


async def test_a_reloaded_page_resumes_the_answer(cluster: Cluster, node: Node) -> None:
    async with chat_page(cluster, node, "4") as page:
        await show(page, "4")
        await page.do(HELLO)
        page.pods.say(*WORDS[:3])
        await page.until("JSON.stringify(s.messages).includes('word2')")
        await page.pods.kill()
        await page.load()
        await show(page, "4", 'initialMessages: [{ id: "u", role: "user", content: "Hello" }]')
        await page.do("chat.experimental_resume()")
        await page.until("s.requests[0]?.status")
        page.pods.say(*WORDS[3:6])
        page.pods.finish()
        state = await page.until("s.status === 'ready' && JSON.stringify(s.messages).includes('word5')")
        assert said(state) == "".join(WORDS[:6])
        await page.do("chat.experimental_resume()")
        state = await page.until("s.status === 'ready' && s.requests[1]?.status")
        assert (state["error"], said(state)) == (None, "".join(WORDS[:6]))
