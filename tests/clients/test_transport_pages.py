"""Pages with `useChat` and `batonChatTransport` in Chromium: whatever happens, they end with what the log has."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pytest
from bench.packages import INSTALL_SECONDS
from tests.clients.browsing import EXPECTED, browsing, needs_chromium
from tests.clients.chat_pages import SDKS, ChatPage, Sdk, bundled, site
from tests.clients.node import Node
from tests.clients.pods import WORDS, TwoPods
from tests.clients.test_loaded_chats import plain
from tests.clients.test_waiting_pages import careful
from tests.support.cluster import Cluster, Tap
from tests.support.processes import SERVES, environment, running
from tests.support.request_balancer import Balancer, request_balancer
from tests.support.serving import served

from baton.generators.protocol import Yielded

pytestmark = [pytest.mark.timeout(INSTALL_SECONDS + 120), needs_chromium]

BEGUN: Final[Sequence[Yielded]] = (
    *WORDS[:3],
    {"type": "tool_call", "index": 0, "id": "g", "name": "search", "arguments_delta": '{"q":'},
)
REST: Final[Sequence[Yielded]] = (
    {"type": "tool_call", "index": 0, "arguments_delta": "1}"},
    {"type": "tool_result", "id": "g", "result": [1]},
    *WORDS[3:6],
)
CALL: Final = {"type": "tool_call", "index": 0, "id": "c", "name": "weather", "arguments_delta": '{"city":"Oslo"}'}
SENDING: Final = """sendAutomaticallyWhen: (chat) =>
  ai.lastAssistantMessageIsCompleteWithToolCalls(chat) ||
  (ai.lastAssistantMessageIsCompleteWithApprovalResponses?.(chat) ?? false),
onToolCall: ({ toolCall: { toolName: tool, toolCallId, providerExecuted } }) => {
  if (!providerExecuted) void chat.addToolOutput({ tool, toolCallId, output: 3 });
}"""


@dataclass(frozen=True, slots=True)
class Scene:
    """A page, a balancer in front of pods, and two pods that may die. The third one stays."""

    page: ChatPage
    balancer: Balancer
    lasting: str

    async def open(self, chat: str, messages: list[dict[str, Any]] | None = None, model: str = "tap") -> None:
        """Load the page of a chat with the messages that it has saved."""
        await self.page.load()
        await show(self.page, chat, messages, model)

    async def ask(self, chat: str, *said: Yielded, model: str = "tap") -> None:
        """Ask on a new page, and wait until it shows what the generator says then."""
        await self.open(chat, model=model)
        await self.page.until("s.requests[0]?.status && s.status === 'ready'")
        await self.page.do('chat.sendMessage({ text: "Hello" })')
        self.page.pods.say(*said)
        await self.page.until(f"JSON.stringify(s.messages.slice(1)).includes('{last_of(said)}')")

    async def stored(self, chat: str) -> list[dict[str, Any]]:
        """The messages in the log."""
        answer = await self.page.cluster.client.get(f"{self.lasting}/v1/conversations/{chat}?form=aisdk")
        messages: list[dict[str, Any]] = answer.json()["messages"]
        return messages

    async def agrees(self, chat: str, page: ChatPage | None = None) -> dict[str, Any]:
        """Wait until the page has the whole answer; check it against the log. Return the state of the page."""
        whole = await (page or self.page).until("s.messages.at(-1).metadata?.status && s.status === 'ready'")
        assert whole["error"] is None
        assert [shown(one) for one in whole["messages"]] == [shown(one) for one in await self.stored(chat)]
        return whole

    def finish(self, *said: Yielded) -> None:
        self.page.pods.say(*said)
        self.page.pods.finish()


def shown(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what the page that answered a question, or saw a wait, notes about it."""
    parts = [{name: part[name] for name in part if name != "approval"} for part in message["parts"]]
    metadata = {name: value for name, value in message.get("metadata", {}).items() if name != "waiting"}
    return plain(message | {"parts": parts}) | {"metadata": metadata}


async def show(page: ChatPage, chat: str, messages: list[dict[str, Any]] | None, model: str) -> None:
    options = f"{{ id, model, messages, {SENDING}, onError: ({{ code }}) => (window.code = code) }}"
    await page.show(options, "useBatonChat", id=chat, model=model, messages=messages or [])


def last_of(said: tuple[Yielded, ...]) -> str:
    return said[-1].strip() if isinstance(said[-1], str) else str(said[-1]["name"])


async def reload(scene: Scene) -> None:
    """In the middle of a call, with the half that the page has saved; again with the whole."""
    await scene.ask("reload", *BEGUN)
    half = (await scene.page.state())["messages"]
    await scene.open("reload", half)
    await scene.page.until("s.status === 'streaming'")
    scene.finish(*REST)
    whole = await scene.agrees("reload")
    assert [request["method"] for request in whole["requests"]] == ["GET"]
    await scene.open("reload", whole["messages"])
    again = await scene.page.until("s.requests[0]?.status === 204 && s.status === 'ready'")
    assert again["messages"] == whole["messages"]
    # The answer that ended while the page was closed comes whole.
    await scene.open("reload", half)
    await scene.agrees("reload")


async def disconnect(scene: Scene) -> None:
    """In the middle of a call, by a proxy; twice."""
    await scene.ask("disconnect", *BEGUN)
    scene.balancer.cut()
    scene.page.pods.say(*REST)
    await scene.page.until("JSON.stringify(s.messages).includes('word5')")
    scene.balancer.cut()
    scene.finish()
    await resumed(scene, "disconnect")


async def resumed(scene: Scene, chat: str) -> None:
    """The page ends with the whole answer, and has requested it only from where it was."""
    whole = await scene.agrees(chat)
    places = [request["url"].partition("startIndex=")[2] for request in whole["requests"]]
    assert places[:2] == ["0", ""]  # at first, and the message
    assert all(int(place) > 5 for place in places[2:])
    assert len(places) > 2


async def deploy(scene: Scene) -> None:
    """Of the pod that the page reads from."""
    await lose(scene, "deploy", 0, signal.SIGTERM)


async def kill(scene: Scene) -> None:
    """Of the pod that the page reads from."""
    await lose(scene, "kill", 1, signal.SIGKILL)


async def lose(scene: Scene, chat: str, place: int, sent: signal.Signals) -> None:
    pods = scene.page.pods
    scene.balancer.pods[:] = [(pods.first, pods.second)[place]]
    await scene.ask(chat, *BEGUN)
    scene.balancer.pods.append(scene.lasting)
    pods.processes[place].signal(sent)
    await pods.processes[place].ends()
    scene.balancer.pods[:] = [scene.lasting]
    scene.finish(*REST)
    await resumed(scene, chat)


async def sleep(scene: Scene) -> None:
    """On a phone, which loses its network meanwhile."""
    await scene.ask("sleep", *BEGUN)
    await become(scene.page, "hidden")
    await scene.page.page.context.set_offline(True)
    scene.balancer.cut()
    scene.finish(*REST)
    await scene.page.ended()
    await scene.page.page.context.set_offline(False)
    await become(scene.page, "visible")
    await resumed(scene, "sleep")


async def become(page: ChatPage, state: str) -> None:
    await page.do(
        f"Object.defineProperty(document, 'visibilityState', {{ value: '{state}', configurable: true }});"
        "document.dispatchEvent(new Event('visibilitychange'));"
    )


async def two_tabs(scene: Scene) -> None:
    """One asks, the other is opened in the middle of the answer."""
    await scene.ask("tabs", *BEGUN)
    other = ChatPage(
        await scene.page.page.context.new_page(),
        *(scene.page.address, scene.page.cluster, scene.page.pods, scene.page.url),
    )
    await other.load()
    await show(other, "tabs", await scene.stored("tabs"), "tap")
    await other.until("JSON.stringify(s.messages).includes('search')")
    scene.finish(*REST)
    assert (await scene.agrees("tabs"))["messages"] == (await scene.agrees("tabs", other))["messages"]
    await other.page.close()


async def leave(scene: Scene) -> None:
    """Go to another view of the page, and come back: the answer was not stopped."""
    await scene.ask("leave", *BEGUN)
    half = (await scene.page.state())["messages"]
    await scene.page.do("leave()")
    scene.finish(*REST)
    await scene.page.ended()
    await show(scene.page, "leave", half, "tap")
    assert (await scene.agrees("leave"))["messages"][-1]["metadata"]["status"] == "completed"


async def client_tool(scene: Scene) -> None:
    """A tool of the page, and a cut in the message that continues."""
    await scene.ask("tool", WORDS[0], CALL)
    scene.finish()
    await scene.page.until("s.requests.filter(({ method }) => method === 'POST').length === 2")
    scene.page.pods.say(WORDS[1])
    await scene.page.until("JSON.stringify(s.messages).includes('word1')")
    scene.balancer.cut()
    scene.finish(WORDS[2])
    whole = await scene.agrees("tool")
    assert len(whole["messages"]) == 2
    # A page that lost what it had in the middle gets all of it, with the result.
    await scene.open("tool", whole["messages"][:1])
    again = await scene.agrees("tool")
    assert len([request for request in again["requests"] if request["method"] == "POST"]) == 0


async def approval(scene: Scene) -> None:
    """A question that waits, is loaded again, and is answered."""
    await scene.open("approval", model="careful")
    await scene.page.until("s.requests[0]?.status && s.status === 'ready'")
    await scene.page.do('chat.sendMessage({ text: "Hello" })')
    waits = "s.status === 'ready' && s.messages[1]?.parts.some(({ state }) => state === 'approval-requested')"
    asked = await scene.page.until(waits)
    await scene.open("approval", asked["messages"], model="careful")
    # An answer before the stream is back is lost: the stream's message replaces it on the page.
    await scene.page.until(f"s.requests[0]?.status && {waits}")
    part = "chat.messages.at(-1).parts.find((part) => part.approval)"
    await scene.page.do(f"chat.addToolApprovalResponse({{ id: {part}.approval.id, approved: true }})")
    whole = await scene.agrees("approval")
    assert [part.get("state") for part in whole["messages"][1]["parts"] if "toolCallId" in part] == ["output-available"]


async def stop(scene: Scene) -> None:
    """The generator stops, and the page has what it said; so does a page that is loaded again and stops there."""
    for chat in ("stop", "stop again"):
        await scene.ask(chat, *WORDS[:3])
        if chat == "stop again":
            await scene.open(chat, (await scene.page.state())["messages"][:1])
            await scene.page.until("JSON.stringify(s.messages).includes('word2')")
        await scene.page.do("chat.stop()")
        stopped = await scene.page.until("s.status === 'ready'")
        await scene.page.ended()
        assert stopped["error"] is None
        assert [texts(one) for one in stopped["messages"]] == [texts(one) for one in await scene.stored(chat)]
        await scene.open(chat, stopped["messages"])
        assert (await scene.agrees(chat))["messages"][-1]["metadata"]["status"] == "cancelled"


def texts(message: dict[str, Any]) -> list[str]:
    return [part["text"] for part in message["parts"] if part["type"] == "text"]


async def failure(scene: Scene) -> None:
    """An error has its code."""
    await scene.ask("failure", *WORDS[:3])
    scene.page.pods.fail("The model is tired.")
    failed = await scene.page.until("s.status === 'error'")
    assert failed["error"] == "The model is tired."
    assert await scene.page.page.evaluate("() => [chat.error.name, chat.error.code, code]") == [
        *("BatonError", "tired", "tired")
    ]
    assert [texts(one) for one in failed["messages"]] == [texts(one) for one in await scene.stored("failure")]


async def no_approval(scene: Scene) -> None:
    """AI SDK 5 cannot ask: the page shows a call without a result, and no error."""
    await scene.ask("approval", WORDS[0], CALL)
    scene.finish({"type": "tool_approval", "id": "c"})
    asked = await scene.page.until("s.messages.at(-1).metadata?.status && s.status === 'ready'")
    states = [part["state"] for part in asked["messages"][1]["parts"] if "toolCallId" in part]
    assert (asked["error"], states) == (None, ["input-available"])


Happens = Callable[[Scene], Awaitable[None]]
SCENES: Final[Sequence[Happens]] = (
    *(reload, disconnect, sleep, two_tabs, leave, client_tool, approval, failure, stop, deploy, kill),
)


def scenes_of(version: str) -> Sequence[Happens]:
    """What happens to a page of a version of the AI SDK."""
    return [no_approval if happens is approval and version == "5" else happens for happens in SCENES]


@pytest.mark.parametrize("version", ["5", "6", "7"])
async def test_a_page_ends_with_the_messages_of_the_log(cluster: Cluster, node: Node, version: str) -> None:
    async with scene_of(cluster, node, version) as scene:
        for happens in scenes_of(version):
            await happens(scene)


@contextlib.asynccontextmanager
async def scene_of(cluster: Cluster, node: Node, version: str) -> AsyncIterator[Scene]:
    tap, sdk = Tap(), SDKS[version]
    await cluster.worker({"tap": tap, "careful": careful}, flush_interval_milliseconds=5)
    script = await bundled(node.folder, Sdk("chat_page_baton.mjs", sdk.ai, sdk.react))
    addresses: list[str] = []
    async with served(site(script, addresses)) as origin:
        pod = await cluster.pod(allowed_origins=origin)
        env = environment(
            BATON_DATABASE_URL=cluster.dsn,
            BATON_ALLOW_ANONYMOUS="true",
            BATON_PORT="0",
            BATON_ALLOWED_ORIGINS=origin,
        )
        async with (
            running("serve", env=env) as one,
            running("serve", env=env) as other,
            request_balancer([pod.url]) as balancer,
            browsing(expected=f"{EXPECTED}|network error|ERR_") as browser,
        ):
            addresses.append(balancer.url)
            first, second = [(await process.said(SERVES))[2] for process in (one, other)]
            pods = TwoPods(cluster, tap, (one, other), first, second)
            page = ChatPage(browser, f"{origin}/", cluster, pods, balancer.url)
            yield Scene(page, balancer, pod.url)
