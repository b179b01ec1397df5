"""Pages with `useChat` in Chromium: what they show of an answer after a reload, a lost connection, and a closed tab."""

from __future__ import annotations

from uuid import UUID

import pytest
from bench.packages import INSTALL_SECONDS
from tests.clients.browsing import needs_chromium
from tests.clients.chat_pages import API, ChatPage, answers, ask, chat_page, parts, show
from tests.clients.node import Node
from tests.clients.pods import WORDS
from tests.support.cluster import Cluster

from baton.db import retention

pytestmark = [pytest.mark.timeout(INSTALL_SECONDS + 60), needs_chromium]

NEW = ("5", "6", "7")
WORKFLOW = (
    '{ id: "42", resume: true, messages, transport: workflowTransport("tap"), onFinish: () => (window.over = true) }'
)


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
@pytest.mark.parametrize("version", NEW)
async def test_an_answer_that_ended_while_the_tab_was_closed_is_complete(
    cluster: Cluster, node: Node, version: str, status: str
) -> None:
    async with chat_page(cluster, node, version) as page:
        await show(page, answers(version))
        half = await ask(page, *WORDS[:3])
        assert "status" not in half["messages"][-1]["metadata"]
        await page.close()
        await end(page, status)
        await page.pods.kill()
        await show(page, answers(version), half["messages"])
        whole = await page.until("s.messages.at(-1).metadata.status && s.status !== 'streaming'")
        assert parts(whole) == ["".join(WORDS[: 3 if status == "cancelled" else 6])]
        assert whole["messages"][-1]["metadata"]["status"] == status
        assert whole["error"] == ("The model is tired. (tired)" if status == "failed" else None)
        assert [request["url"].partition("?")[2] for request in whole["requests"]] == ["startIndex=0"]
        # What is whole is not asked for again.
        await show(page, answers(version), whole["messages"])
        again = await page.until("s.status === 'ready'")
        assert again["messages"] == whole["messages"]
        assert [(r["url"], r["status"]) for r in again["requests"]] == [(f"{page.url}{API}/42/stream", 204)]


async def end(page: ChatPage, status: str) -> None:
    """Have the answer end while nobody looks."""
    if status == "cancelled":
        stopped = await page.cluster.client.post(f"{page.pods.second}{API}/42/stop")
        assert stopped.status_code == 202
    else:
        page.pods.say(*WORDS[3:6])
        page.pods.finish() if status == "completed" else page.pods.fail("The model is tired.")
    await page.ended()


@pytest.mark.parametrize("version", NEW)
async def test_a_question_answered_while_the_tab_was_closed_gets_its_answer(
    cluster: Cluster, node: Node, version: str
) -> None:
    async with chat_page(cluster, node, version) as page:
        await show(page, answers(version))
        asked = await ask(page, *WORDS[:3])
        await page.close()
        await end(page, "completed")
        await show(page, answers(version), asked["messages"][:1])
        assert parts(await page.until("s.messages.at(-1).metadata?.status")) == ["".join(WORDS[:6])]


@pytest.mark.parametrize("version", NEW)
async def test_an_erased_partial_answer_stays_unchanged(cluster: Cluster, node: Node, version: str) -> None:
    async with chat_page(cluster, node, version) as page:
        await show(page, answers(version))
        half = await ask(page, *WORDS[:3])
        await page.close()
        await end(page, "completed")
        await page.erase()
        await show(page, answers(version), half["messages"])
        left = await page.until("s.status === 'ready'")
        assert (left["messages"], left["error"]) == (half["messages"], None)
        assert len(left["requests"]) == 1


async def test_workflow_chat_transport_asks_once_for_a_chat_without_an_answer(cluster: Cluster, node: Node) -> None:
    async with chat_page(cluster, node, "7") as page:
        await page.show(WORKFLOW, messages=[])
        new = await page.until("window.over && s.status === 'ready'")
        assert (new["messages"], new["error"]) == ([], None)
        assert [(request["method"], request["status"]) for request in new["requests"]] == [("GET", 200)]
        await page.pods.kill()
        await page.do('window.over = false; chat.sendMessage({ text: "Hello" })')
        page.pods.say(*WORDS[:3])
        page.pods.finish()
        whole = await page.until("window.over && s.status === 'ready'")
        assert (parts(whole), whole["error"]) == (["".join(WORDS[:3])], None)
        assert [request["method"] for request in whole["requests"]] == ["GET", "POST"]


async def test_unsent_tool_results_are_sent_once_if_a_chat_has_no_answer(cluster: Cluster, node: Node) -> None:
    answered = {"type": "tool-look_up", "toolCallId": "c", "state": "output-available", "input": {}, "output": 1}
    messages = [
        {"id": "1", "role": "user", "parts": [{"type": "text", "text": "Hello"}]},
        {"id": "2", "role": "assistant", "parts": [{"type": "step-start"}, answered]},
    ]
    sending = "sendAutomaticallyWhen: ai.lastAssistantMessageIsCompleteWithToolCalls"
    async with chat_page(cluster, node, "7") as page:
        page.pods.say(*WORDS[:3])
        page.pods.finish()
        await page.show(WORKFLOW.replace("resume: true", f"resume: true, {sending}"), messages=messages)
        sent = await page.until("s.messages.at(-1).metadata?.status && s.status === 'ready'")
        assert [request["method"] for request in sent["requests"]] == ["GET", "POST"]


async def test_workflow_chat_transport_replaces_an_incomplete_tool_call(cluster: Cluster, node: Node) -> None:
    call = {"type": "tool_call", "index": 0, "id": "c", "name": "look_up", "arguments_delta": '{"x":'}
    async with chat_page(cluster, node, "7") as page:
        await page.show(WORKFLOW, messages=[])
        await page.until("window.over && s.status === 'ready'")
        await page.do('chat.sendMessage({ text: "Hello" })')
        page.pods.say(*WORDS[:3], call)
        half = await page.until("JSON.stringify(s.messages).includes('look_up')")
        await page.close()
        await page.pods.kill()
        await page.load()
        await page.show(WORKFLOW.replace("messages,", "messages: resumable(messages),"), messages=half["messages"])
        page.pods.say({"type": "tool_call", "index": 0, "arguments_delta": "1}"})
        page.pods.finish()
        whole = await page.until("window.over && s.status === 'ready'")
        assert parts(whole) == ["".join(WORDS[:3]), "input-available"]


# Where the page is to ask, and what is wrong there.
CASES = {
    "ended": ("{}", None),
    "stopped": ("{}", None),
    "erased": ("{}", None),
    "seen whole": ("{ initialStartIndex: WHOLE }", None),
    "beyond the end": ("{ initialStartIndex: WHOLE + 1 }", "cursor_beyond_tail"),
    "damaged": ("{}", "log_damaged"),
    "an unknown run": ("{ prepareReconnectToStreamRequest: () => ({ api: API + UNKNOWN }) }", "stream_not_found"),
    "an expired run": ("{ prepareReconnectToStreamRequest: () => ({ api: API + EXPIRED }) }", "stream_expired"),
}


@pytest.mark.parametrize("case", CASES)
async def test_workflow_chat_transport_asks_once_for_an_ended_answer(cluster: Cluster, node: Node, case: str) -> None:
    options, code = CASES[case]
    async with chat_page(cluster, node, "7") as page:
        await page.show(WORKFLOW, messages=[])
        await page.until("window.over && s.status === 'ready'")
        await page.do('chat.sendMessage({ text: "Hello" })')
        page.pods.say(*WORDS[:3])
        half = await page.until("JSON.stringify(s.messages).includes('word2')")
        await page.close()
        await end(page, "cancelled" if case == "stopped" else "completed")
        await page.pods.kill()
        if "WHOLE" in options:
            options = options.replace("WHOLE", str(await page.chunks()))
        await spoil(page, case)
        await page.load()
        values = {"messages": half["messages"], "API": page.url + API, "UNKNOWN": UNKNOWN, "EXPIRED": EXPIRED}
        await page.show(WORKFLOW.replace('"tap"', f'"tap", {options}'), **values)
        over = await page.until("s.error" if code else "window.over && s.status === 'ready'")
        assert code in over["error"] if code else over["error"] is None
        assert len(over["requests"]) == 1


UNKNOWN = f"/run_{'f' * 32}/stream"
EXPIRED = "/run_00000000000070008000000000000000/stream"


async def spoil(page: ChatPage, case: str) -> None:
    """Take away what the answer needs."""
    pool = page.cluster.pool
    if case == "erased":
        await page.erase()
    elif case == "damaged":
        await pool.execute("DELETE FROM baton.batch WHERE NOT terminal")
    elif case == "an expired run":
        async with pool.acquire() as connection:
            await retention.raise_horizon(connection, UUID(int=1 << 120))
