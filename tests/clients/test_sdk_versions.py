"""The tables of AI SDK versions in docs/ai-sdk.md: what they say is what happens in Chromium, with two pods."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal

import pytest
from bench.packages import INSTALL_SECONDS
from tests.clients import test_transport_pages as transport_pages
from tests.clients.browsing import needs_chromium
from tests.clients.chat_pages import API, SDKS, ChatPage, answers, ask, chat_page, parts, show
from tests.clients.node import AI_SDK, HERE, Node
from tests.clients.pods import WORDS
from tests.clients.test_data_stream_pages import HELLO, said, settled
from tests.support.cluster import Cluster

pytestmark = [pytest.mark.timeout(INSTALL_SECONDS + 60), needs_chromium]

Outcome = Literal["whole", "doubled", "split", "refused", "lost"]
Row = dict[str, str]

TEXT: Final = "".join(WORDS[:3])
CALL: Final = {"type": "tool_call", "index": 0, "id": "c", "name": "look_up", "arguments_delta": '{"x":'}
REST: Final = {"type": "tool_call", "index": 0, "arguments_delta": "1}"}
ASKS: Final = {"type": "tool_approval", "id": "c"}
RESULT: Final = {"type": "tool_result", "id": "c", "result": 1}
# What a cell says, and what then happens with `useChat` as it is, and with what the page says for this version.
CELLS: Final[dict[str, tuple[Outcome, Outcome]]] = {
    "yes": ("whole", "whole"),
    "with the code below": ("doubled", "whole"),
    "after `setMessages`": ("doubled", "whole"),
    "no": ("refused", "refused"),
}
COLUMNS: Final = ("send", "stop", "reload", "resume", "client tools", "approvals")
# What `test_transport_pages.py` runs for the rows of the transport.
SCENES: Final[Mapping[str, transport_pages.Happens]] = {
    "send": transport_pages.failure,
    "stop": transport_pages.stop,
    "reload": transport_pages.reload,
    "resume": transport_pages.kill,
    "client tools": transport_pages.client_tool,
    "approvals": transport_pages.approval,
}


def tables() -> tuple[dict[str, Row], dict[str, Row]]:
    """The packages, and what works: rows by their first column, each a mapping from the names of the columns."""
    section = AI_SDK.read_text().split("## Versions\n")[1].split("\n## ")[0]
    packages, works = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    return rows_of(packages), rows_of(works)


def rows_of(table: str) -> dict[str, Row]:
    names, _, *rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in table.splitlines()]
    return {row[0]: dict(zip(names[1:], row[1:], strict=True)) for row in rows}


def said_of(version: str) -> Row:
    return tables()[1][version]


def test_the_table_names_packages_that_fit_together() -> None:
    locked = json.loads((HERE / "package-lock.json").read_text())["packages"]
    stated, works = tables()
    assert stated.keys() == SDKS.keys()
    assert works.keys() == SDKS.keys() | {transported(version) for version in ("5", "6", "7")}
    for version, sdk in SDKS.items():
        ai = locked[f"node_modules/{sdk.ai}"]
        if sdk.react is None:
            react = ai["dependencies"]["@ai-sdk/react"]  # which is its `ai/react`
        else:
            react = locked[f"node_modules/{sdk.react}"]["version"]
            assert locked[f"node_modules/{sdk.react}"]["dependencies"]["ai"] == ai["version"]
        row = stated[version]
        node = f"{ai['engines']['node'].removeprefix('>=')} or newer"
        assert (row["`ai`"], row["`@ai-sdk/react`"], row["Node"]) == (ai["version"], react, node)
        assert row["address"].strip("`") == (address_of(version) if version in OLD else API)


def transported(version: str) -> str:
    return f"{version}, `batonChatTransport`"


@pytest.mark.parametrize("version", ["5", "6", "7"])
def test_the_rows_of_the_transport_say_what_its_pages_do(version: str) -> None:
    tested = transport_pages.scenes_of(version)
    works = {column: "yes" if SCENES[column] in tested else "no" for column in COLUMNS}
    assert said_of(transported(version)) == works


@pytest.mark.parametrize("version", ["3.4", "4"])
async def test_the_table_matches_what_old_versions_do(cluster: Cluster, node: Node, version: str) -> None:
    stated = said_of(version)
    async with chat_page(cluster, node, version) as page:
        await is_refused_at_the_newer_address(page, version)
        happened = {column: await action(page, version) for column, action in OLD_ACTIONS.items()}
    assert happened == {column: CELLS[stated[column]][True] for column in COLUMNS} | {
        "reload, as it is": CELLS[stated["reload"]][False]
    }


@pytest.mark.parametrize(("version", "snippet"), [("5", False), ("5", True), ("6", False), ("6", True), ("7", True)])
async def test_the_table_matches_what_happens(cluster: Cluster, node: Node, version: str, snippet: bool) -> None:
    """Without the snippet, only what needs it."""
    expected = {column: CELLS[cell][snippet] for column, cell in said_of(version).items()}
    if not snippet:
        expected = {column: outcome for column, outcome in expected.items() if outcome == "doubled"}
        assert expected
    async with chat_page(cluster, node, version) as page:
        options = answers(version, snippet=snippet)
        happened = {
            column: await action(page, options.replace("42", column), snippet and version != "7")
            for column, action in ACTIONS.items()
            if column in expected
        }
    assert happened == expected


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


async def approvals(page: ChatPage, options: str, _snippet: bool) -> Outcome:
    """The page allows a call of the generator, and sends the answer by itself."""
    options = f"{{ ...{options}, sendAutomaticallyWhen: ai.lastAssistantMessageIsCompleteWithApprovalResponses }}"
    await show(page, options)
    await ask(page, *WORDS[:3], CALL)
    page.pods.say(REST, ASKS)
    page.pods.finish()
    asked = await page.until("s.error || (s.messages.at(-1).metadata?.status && s.status === 'ready')")
    if asked["error"]:
        assert "tool-approval-request" in asked["error"]
        await page.ended()
        return "refused"
    part = "chat.messages.at(-1).parts.find((part) => part.approval)"
    await page.do(f"chat.addToolApprovalResponse({{ id: {part}.approval.id, approved: true }})")
    page.pods.say(RESULT)
    page.pods.finish()
    state = await page.until(
        "s.error || (s.status === 'ready' && JSON.stringify(s.messages).includes('output-available'))"
    )
    return outcome(state, [TEXT, "output-available"])


# The last one kills a pod.
ACTIONS: Final[dict[str, Callable[[ChatPage, str, bool], Awaitable[Outcome]]]] = {
    "send": send,
    "stop": stop,
    "reload": reload,
    "client tools": client_tools,
    "approvals": approvals,
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


OLD: Final = ("3.4", "4")


def address_of(version: str) -> str:
    return f"/v1/ai-sdk/v{version[0]}/chat"


async def is_refused_at_the_newer_address(page: ChatPage, version: str) -> None:
    """With a sentence that names the other one."""
    await page.show("{ id: '42', api: API, body: { model: 'tap' } }", API=page.url + API)
    await page.do(HELLO)
    state = await page.until("s.error")
    assert address_of("4") in state["error"]
    assert said(state) == ""
    assert [request["status"] for request in state["requests"]] == [400]
    if version == "4":
        await page.do("chat.experimental_resume()")
        resumed = await page.until("s.requests[1]?.status && s.error?.includes('allows POST')")
        assert resumed["requests"][1]["status"] == 405
    assert await page.cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 0


async def show_old(
    page: ChatPage, version: str, chat: str, options: str = "", saved: list[dict[str, Any]] | None = None
) -> None:
    await page.load()
    body = f"{{ id: '{chat}', model: 'tap' }}" if version == "3.4" else "{ model: 'tap' }"
    given = f"{{ id: '{chat}', api: API, initialMessages: saved, body: {body}, {options} }}"
    await page.show(given, API=page.url + address_of(version), saved=saved or [])


async def ask_old(page: ChatPage, version: str, chat: str) -> list[dict[str, Any]]:
    """Ask on a new page; return the messages when the answer has begun."""
    await show_old(page, version, chat)
    await page.do(HELLO)
    page.pods.say(*WORDS[:3])
    begun: list[dict[str, Any]] = (await page.until("JSON.stringify(s.messages).includes('word2')"))["messages"]
    return begun


async def send_old(page: ChatPage, version: str) -> Outcome:
    await ask_old(page, version, "send")
    page.pods.finish()
    await page.ended()
    return outcome_old(await page.until(settled("true")), WORDS[:3])


async def stop_old(page: ChatPage, version: str) -> Outcome:
    await ask_old(page, version, "stop")
    await page.do(f"chat.stop(); fetch('{page.url}{API}/stop/stop', {{ method: 'POST' }})")
    await page.ended()
    newest = "SELECT status FROM baton.stream ORDER BY id DESC LIMIT 1"
    assert await page.cluster.pool.fetchval(newest) == "cancelled"
    return outcome_old(await page.until(settled("true")), WORDS[:3])


async def reload_old(page: ChatPage, version: str) -> Outcome:
    """Without the half of the answer that the page has saved."""
    begun = await ask_old(page, version, "reload")
    await show_old(page, version, "reload", saved=begun[:-1])
    return await resumed_old(page)


async def reload_as_it_is(page: ChatPage, version: str) -> Outcome:
    """With that half."""
    begun = await ask_old(page, version, "as it is")
    await show_old(page, version, "as it is", saved=begun)
    return await resumed_old(page)


async def resume_old(page: ChatPage, version: str) -> Outcome:
    """After the death of a pod."""
    await ask_old(page, version, "resume")
    await page.pods.kill()
    await page.until("s.error")
    await page.do("chat.setMessages(chat.messages.slice(0, -1))")
    await page.until("s.messages.length === 1")
    return await resumed_old(page)


async def resumed_old(page: ChatPage) -> Outcome:
    if not await page.page.evaluate("() => 'experimental_resume' in chat"):
        page.pods.finish()
        await page.ended()
        return "refused"
    await page.do("chat.experimental_resume()")
    await page.until("s.requests.at(-1)?.method === 'GET' && s.requests.at(-1).status")
    page.pods.say(*WORDS[3:6])
    page.pods.finish()
    return outcome_old(await page.until(settled("JSON.stringify(s.messages).includes('word5')")), WORDS[:6])


async def client_tools_old(page: ChatPage, version: str) -> Outcome:
    """The page runs a call, and sends the result by itself."""
    await show_old(page, version, "tools", "maxSteps: 3, onToolCall: ({ toolCall }) => toolCall.args.x + 1")
    page.pods.say(CALL, REST)
    page.pods.finish()
    await page.do(HELLO)
    await page.until("s.requests[1]")
    page.pods.say(*WORDS[:3])
    page.pods.finish()
    return outcome_old(await page.until(settled("JSON.stringify(s.messages).includes('word2')")), WORDS[:3])


async def approvals_old(page: ChatPage, version: str) -> Outcome:
    """The page shows a call without a result, does not run it, and has no way to answer."""
    await show_old(page, version, "approvals", "maxSteps: 3, onToolCall: () => (window.ran = true)")
    await page.do(HELLO)
    page.pods.say(CALL, REST, ASKS)
    page.pods.finish()
    await page.ended()
    state = await page.until(settled("JSON.stringify(s.messages).includes('look_up')"))
    assert (state["error"], len(state["requests"])) == (None, 1)
    assert not await page.page.evaluate("() => window.ran || 'addToolApprovalResponse' in chat")
    return "refused"


def outcome_old(state: dict[str, Any], words: list[str]) -> Outcome:
    if state["error"]:
        return "lost"
    return "whole" if said(state) == "".join(words) else "doubled" if said(state).endswith("".join(words)) else "lost"


OLD_ACTIONS: Final[dict[str, Callable[[ChatPage, str], Awaitable[Outcome]]]] = {
    "send": send_old,
    "stop": stop_old,
    "reload": reload_old,
    "reload, as it is": reload_as_it_is,
    "client tools": client_tools_old,
    "approvals": approvals_old,
    "resume": resume_old,
}
