"""Pages with `useChat` of each version of the AI SDK, in Chromium, beside two pods behind one address."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from playwright.async_api import Page
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from tests.clients.balancer import balancer
from tests.clients.browsing import EXPECTED, browsing
from tests.clients.node import Node, documented
from tests.clients.pods import TwoPods, two_pods
from tests.support.cluster import Cluster
from tests.support.logbook import until
from tests.support.serving import served
from tools.js_client import PACKAGE

API: Final = "/v1/ai-sdk/chat"
# What the SDKs write into the console when an answer breaks off.
COMPLAINTS: Final = rf"{EXPECTED}|Error in chat|network error"
ADDRESS: Final = "http://localhost:8001"  # in the documentation, of the pods


@dataclass(frozen=True, slots=True)
class Sdk:
    """A version of the AI SDK: the script of its page, and the names under which npm has its packages here."""

    script: str
    ai: str
    react: str | None = None


SDKS: Final[Mapping[str, Sdk]] = {
    "3.4": Sdk("chat_page_3_4.mjs", "ai-3"),
    "4": Sdk("chat_page_3_4.mjs", "ai-4"),
    "5": Sdk("chat_page_5_6.mjs", "ai-5", "react-5"),
    "6": Sdk("chat_page_5_6.mjs", "ai-6", "react-6"),
    "7": Sdk("chat_page_7.mjs", "ai", "@ai-sdk/react"),
}


@dataclass(frozen=True, slots=True)
class ChatPage:
    """A page in Chromium, the address that it knows, and the pods behind that."""

    page: Page
    address: str
    cluster: Cluster
    pods: TwoPods
    url: str

    async def load(self) -> None:
        """Load the page, or load it again: nothing is left of what it had."""
        await self.page.goto(self.address)
        await self.page.wait_for_function("() => !!window.show")

    async def close(self) -> None:
        """Leave the page, as a person does who closes the tab."""
        await self.page.goto("about:blank")

    async def show(self, options: str, hook: str = "useChat", **values: Any) -> None:
        """Show a chat with these options for a hook, in JavaScript, in which `values` may be named."""
        names = ", ".join(values)
        await self.page.evaluate(f"({{ {names} }}) => show({options}, {hook})", values)
        await self.page.wait_for_function("() => !!window.chat")

    async def do(self, code: str) -> None:
        """Run JavaScript, and do not wait for what it begins."""
        await self.page.evaluate(f"() => {{ {code} }}")

    async def until(self, condition: str) -> dict[str, Any]:
        """Wait until something is true on the page; return its state."""
        try:
            await self.page.wait_for_function(f"(() => {{ const s = state(); return {condition}; }})()")
        except Exception as error:
            raise AssertionError(f"{condition} did not come true: {await self.state()!r:.3000}") from error
        return await self.state()

    async def state(self) -> dict[str, Any]:
        """Return the messages, the status, the error and the requests."""
        state: dict[str, Any] = json.loads(await self.page.evaluate("() => JSON.stringify(state())"))
        return state

    async def ended(self) -> None:
        """Wait until no answer is under way."""
        live = "SELECT count(*) FROM baton.stream WHERE status IN ('queued', 'running')"

        async def nothing_is_live() -> bool:
            return bool(await self.cluster.pool.fetchval(live) == 0)

        await until(nothing_is_live)

    async def erase(self) -> None:
        """Erase the newest answer."""
        newest = await self.cluster.pool.fetchval("SELECT id FROM baton.stream ORDER BY id DESC LIMIT 1")
        erased = await self.cluster.client.delete(f"{self.pods.second}/v1/streams/{newest}")
        assert erased.status_code == 204

    async def chunks(self) -> int:
        """Count the chunks of the chat's answer."""
        answer = await self.cluster.client.get(f"{self.pods.second}{API}/42/stream?startIndex=0")
        return answer.text.count("data: {")


def answers(version: str, *, snippet: bool = True) -> str:
    """The options of the documentation's hook; with `snippet`, as it says for AI SDK 5 and 6."""
    if snippet and version in {"5", "6"}:
        return '{ id: "42", model: "tap", messages: resumable(messages), fetch: fetchAnswer }'
    return '{ id: "42", model: "tap", messages }'


async def show(page: ChatPage, options: str, messages: list[dict[str, Any]] | None = None) -> None:
    """Load the page with the messages that it has saved, and wait until it has asked for an answer."""
    await page.load()
    await page.show(options, "useAnswers", messages=messages or [])
    await page.until("s.requests[0]?.status")


async def ask(page: ChatPage, *said: Any) -> dict[str, Any]:
    """Send a message on a page that waits for one. Wait until it shows what the generator says then."""
    await page.until("s.status === 'ready' && s.requests[0].status === 204")
    before = len((await page.state())["messages"])
    await page.do('chat.sendMessage({ text: "Hello" })')
    page.pods.say(*said)
    last = said[-1].strip() if isinstance(said[-1], str) else said[-1]["name"]
    return await page.until(f"JSON.stringify(s.messages.slice({before + 1})).includes('{last}')")


def parts(state: dict[str, Any]) -> list[str]:
    """The texts of all answers, and the states of their tool calls."""
    shown = [part for message in state["messages"] if message["role"] == "assistant" for part in message["parts"]]
    return [part.get("text") or part["state"] for part in shown if part["type"] != "step-start"]


@contextlib.asynccontextmanager
async def chat_page(cluster: Cluster, node: Node, version: str) -> AsyncIterator[ChatPage]:
    """Serve the page of a version, start two pods that let it in, and load it."""
    addresses: list[str] = []
    async with (
        served(site(await bundled(node.folder, SDKS[version]), addresses)) as origin,
        two_pods(cluster, allowed_origins=origin) as pods,
        balancer(pods.first, pods.second) as url,
        browsing(expected=COMPLAINTS) as browser,
    ):
        addresses.append(url)
        chat = ChatPage(browser, f"{origin}/", cluster, pods, url)
        await chat.load()
        yield chat


def site(script: Path, addresses: list[str]) -> Starlette:
    """The site of a page with this script, in which the first address takes the place of the documentation's."""

    text = script.read_text()

    async def page(_request: Request) -> Response:
        return HTMLResponse('<!doctype html><body></body><script type="module" src="/page.mjs"></script>')

    async def code(_request: Request) -> Response:
        return Response(text.replace(ADDRESS, addresses[0]), media_type="text/javascript")

    return Starlette(routes=[Route("/", page), Route("/page.mjs", code)])


async def bundled(folder: Path, sdk: Sdk) -> Path:
    """Bundle a page's script with the packages of a version, and with the sources of ours."""
    for name, code in documented().items():
        (folder / name).write_text(code)
    bundle = folder / f"{Path(sdk.script).stem}.{sdk.ai}.js"
    if not bundle.exists():
        process = await asyncio.create_subprocess_exec(
            *(folder / "node_modules" / ".bin" / "esbuild", folder / sdk.script, f"--outfile={bundle}"),
            *("--bundle", "--format=esm", "--log-level=error", '--define:process.env.NODE_ENV="production"'),
            f"--alias:baton-stream/ai-sdk={PACKAGE / 'src' / 'ai-sdk.ts'}",
            *([f"--alias:ai={sdk.ai}"] if sdk.ai != "ai" else []),
            *([f"--alias:@ai-sdk/react={sdk.react}"] if sdk.react else []),
            cwd=folder,
        )
        assert await process.wait() == 0
    return bundle
