"""Pages with `useChat` and tools in Chromium: what runs is asked for once, and what the user allows runs once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pytest
from bench.packages import INSTALL_SECONDS
from tests.clients.browsing import needs_chromium
from tests.clients.chat_pages import ChatPage, answers, ask, chat_page, parts, show
from tests.clients.node import Node
from tests.clients.pods import WORDS
from tests.support.cluster import Cluster

pytestmark = [pytest.mark.timeout(INSTALL_SECONDS + 60), needs_chromium]

CALL: Final = {"type": "tool_call", "index": 0, "id": "c", "name": "delete", "arguments_delta": '{"path":"a.txt"}'}
ASKS: Final = {"type": "tool_approval", "id": "c"}
RESULT: Final = {"type": "tool_result", "id": "c", "result": 3}
# A page that sends whatever it may by itself.
SENDING: Final = """sendAutomaticallyWhen: (chat) =>
  ai.lastAssistantMessageIsCompleteWithToolCalls(chat) ||
  (ai.lastAssistantMessageIsCompleteWithApprovalResponses?.(chat) ?? false),
onToolCall: ({ toolCall }) => void (window.called = toolCall)"""


def options(version: str) -> str:
    return f"{{ ...{answers(version)}, {SENDING} }}"


def posts(state: dict[str, Any]) -> int:
    return [request["method"] for request in state["requests"]].count("POST")


async def settled(page: ChatPage, *shown: str) -> dict[str, Any]:
    """Wait until an answer is over that shows so; return the state of the page after everything that it does then."""
    await page.until("s.messages.at(-1).metadata?.status && s.status === 'ready'")
    # What the SDK sends by itself, it sends in the tasks that follow.
    await page.page.evaluate("() => new Promise((resolve) => setTimeout(resolve, 500))")
    state = await page.state()
    assert (parts(state), state["status"], state["error"]) == (list(shown), "ready", None)
    return state


@pytest.mark.parametrize("version", ["5", "6", "7"])
async def test_an_answer_that_ends_with_a_tool_result_is_requested_once(
    cluster: Cluster, node: Node, version: str
) -> None:
    async with chat_page(cluster, node, version) as page:
        await show(page, options(version))
        half = await ask(page, CALL)
        await page.pods.kill()
        await show(page, options(version), half["messages"])
        page.pods.say(RESULT)
        page.pods.finish()
        whole = await settled(page, "output-available")
        assert (posts(half), posts(whole), len(page.pods.tap.requests)) == (1, 0, 1)
        # Neither does a page that saw the whole of it.
        await page.do('chat.sendMessage({ text: "Again" })')
        page.pods.say(CALL | {"id": "d"}, RESULT | {"id": "d"})
        page.pods.finish()
        await page.until("s.messages.length === 4")
        again = await settled(page, "output-available", "output-available")
        assert (posts(again), len(page.pods.tap.requests)) == (1, 2)
        assert await page.page.evaluate("() => window.called") is None


@pytest.mark.parametrize("approved", [True, False])
@pytest.mark.parametrize("version", ["6", "7"])
async def test_an_approved_call_runs_once_on_another_pod(
    cluster: Cluster, node: Node, version: str, approved: bool
) -> None:
    async with chat_page(cluster, node, version) as page:
        await show(page, options(version))
        half = await ask(page, WORDS[0])
        await page.close()
        page.pods.say(CALL, ASKS)
        page.pods.finish()
        await page.ended()
        await page.pods.kill()
        # The question came while the page was closed.
        await show(page, options(version), half["messages"])
        asked = await settled(page, WORDS[0], "approval-requested")
        await answer(page, approved)
        page.pods.say(*([RESULT] if approved else []), "I ", "have ")
        answered = await page.until("JSON.stringify(s.messages).includes('have')")
        (_, request) = page.pods.tap.requests
        found = [(approval.name, approval.arguments) for approval in request.approvals]
        assert found == ([("delete", {"path": "a.txt"})] if approved else [])
        assert [message["role"] for message in request.input["messages"]] == roles(approved)
        # A reload in the middle of it shows no buttons, and the call once.
        await show(page, options(version), answered["messages"])
        page.pods.say("heard.")
        page.pods.finish()
        outcome = "output-available" if approved else "output-denied"
        whole = await settled(page, WORDS[0], outcome, "I have heard.")
        assert (posts(asked), posts(answered), posts(whole), len(page.pods.tap.requests)) == (0, 1, 0, 2)
        assert len({message["id"] for message in whole["messages"]}) == len(whole["messages"]) == 2


async def answer(page: ChatPage, approved: bool) -> None:
    """Press one of the two buttons."""
    part = "chat.messages.at(-1).parts.find((part) => part.approval)"
    response = f"{{ id: {part}.approval.id, approved: {str(approved).lower()} }}"
    await page.do(f"chat.addToolApprovalResponse({response})")


def roles(approved: bool) -> Sequence[str]:
    """Of the messages in the request that answers the question."""
    return ["user", "assistant"] if approved else ["user", "assistant", "tool"]
