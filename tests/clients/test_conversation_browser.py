"""A conversation of six turns with `useChat` in Chromium: the page, the provider and the log agree about it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

import pytest
from bench.packages import INSTALL_SECONDS
from tests.clients.browsing import needs_chromium
from tests.clients.chat_pages import ChatPage, answers, chat_page, show
from tests.clients.node import Node
from tests.support.cluster import Cluster

from baton.generators.conversation import messages
from baton.generators.protocol import Yielded

pytestmark = [pytest.mark.timeout(INSTALL_SECONDS + 60), needs_chromium]

# What is said and called, in order: a role, and a text; or a call's id, its name and its input; or an id and an output.
Said = tuple[Any, ...]

TOOLS: Final = """clientTools({
  weather: ({ toolName: tool, toolCallId }) => void chat.addToolOutput({ tool, toolCallId, output: { celsius: 3 } }),
  clock: ({ toolName: tool, toolCallId }) => void chat.addToolOutput({ tool, toolCallId, output: "noon" }),
})"""
BROKEN_OFF: Final = "Error: this call was broken off."

TURNS: Final[list[list[Said]]] = [
    [
        ("user", "Weather and time?"),
        ("reasoning", "Two tools."),
        ("text", "Looking. "),
        ("call", "w1", "weather", {"city": "Oslo"}),
        ("call", "k1", "clock", {"zone": "CET"}),
        ("result", "w1", {"celsius": 3}),
        ("result", "k1", "noon"),
        ("text", "3 degrees at noon."),
    ],
    [
        ("user", "Look it up."),
        ("reasoning", "My own tool."),
        ("call", "g1", "search", {"q": "Oslo"}),
        ("result", "g1", ["a", {"b": 1}]),
        ("text", "Found a."),
    ],
    [
        ("user", "Write a novel."),
        ("text", "Once upon "),
        ("call", "g2", "search", {"q": "plot"}),
        ("result", "g2", BROKEN_OFF),
    ],
    [
        ("user", "Weather again?"),
        ("call", "w2", "weather", {"city": "Rome"}),
        ("result", "w2", {"celsius": 3}),
        ("text", "Still 3."),
    ],
    [
        ("user", "Time, and look it up."),
        ("call", "k2", "clock", {"zone": "UTC"}),
        ("result", "k2", "noon"),
        ("text", "At noon "),
        ("call", "g3", "search", {"q": "UTC"}),
        ("result", "g3", {"found": None}),
        ("text", "it is noon."),
    ],
    [("user", "Thanks."), ("text", "Not at all.")],
]


def call(call_id: str, name: str, arguments: str, index: int = 0) -> dict[str, Any]:
    return {"type": "tool_call", "index": index, "id": call_id, "name": name, "arguments_delta": arguments}


def result(call_id: str, value: Any) -> dict[str, Any]:
    return {"type": "tool_result", "id": call_id, "result": value}


@pytest.mark.parametrize("version", ["5", "6", "7"])
async def test_the_page_the_provider_and_the_log_agree_about_a_conversation(
    cluster: Cluster, node: Node, version: str
) -> None:
    async with chat_page(cluster, node, version) as page:
        turns = Turns(page, version)
        await turns.page_tools()
        await turns.own_tool()
        await turns.stop()
        await turns.reload()
        await turns.kill()
        await turns.thanks()
        state = await page.state()
        assert (state["status"], state["error"]) == ("ready", None)
        await agree(page, state["messages"])


class Turns:
    """The turns of the conversation. Each leaves the page with a whole answer."""

    def __init__(self, page: ChatPage, version: str) -> None:
        self.page = page
        self.version = version
        self.options = f"{{ ...{answers(version)}, ...{TOOLS} }}"

    async def page_tools(self) -> None:
        """Two tools of the page, called in one step."""
        await show(self.page, self.options)
        await self.ask(0)
        self.say({"type": "reasoning", "delta": "Two tools."}, "Looking. ", call("w1", "weather", '{"city":'))
        self.end(
            {"type": "tool_call", "index": 0, "arguments_delta": '"Oslo"}'}, call("k1", "clock", '{"zone":"CET"}', 1)
        )
        self.end("3 degrees ", "at noon.")
        await self.whole("at noon.")

    async def own_tool(self) -> None:
        """A tool that the generator runs."""
        await self.ask(1)
        self.say({"type": "reasoning", "delta": "My own tool."}, call("g1", "search", '{"q":"Oslo"}'))
        self.end(result("g1", ["a", {"b": 1}]), "Found a.")
        await self.whole("Found a.")

    async def stop(self) -> None:
        """The user stops the answer in the middle of a call."""
        await self.ask(2)
        self.say("Once upon ", call("g2", "search", '{"q":"plot"'))
        await self.page.until("JSON.stringify(s.messages).includes('plot')")
        await self.page.do("chat.stop()")
        await self.whole("plot")

    async def reload(self) -> None:
        """The page is loaded again while an answer continues a message."""
        await self.ask(3)
        self.end(call("w2", "weather", '{"city":"Rome"}'))
        self.say("Still ")
        half = await self.page.until("JSON.stringify(s.messages).includes('Still')")
        await show(self.page, self.options, half["messages"])
        self.end("3.")
        await self.whole("Still 3.")

    async def kill(self) -> None:
        """The pod dies while an answer continues a message, in the middle of a call."""
        await self.ask(4)
        self.end(call("k2", "clock", '{"zone":"UTC"}'))
        self.say("At noon ", call("g3", "search", '{"q":'))
        await self.page.until(
            "JSON.stringify(s.messages).includes('search') && s.messages.at(-1).parts.at(-1).toolCallId === 'g3'"
        )
        await self.page.pods.kill()
        await self.page.until("s.status === 'error'")
        if self.version in {"5", "6"}:
            await self.page.do("chat.setMessages(resumable)")
        await self.page.do("chat.resumeStream()")
        self.say({"type": "tool_call", "index": 0, "arguments_delta": '"UTC"}'}, result("g3", {"found": None}))
        self.end("it is noon.")
        await self.whole("it is noon.")

    async def thanks(self) -> None:
        await self.ask(5)
        self.end("Not at all.")
        await self.whole("Not at all.")

    async def ask(self, number: int) -> None:
        await self.page.until("s.status === 'ready'")
        await self.page.do(f"chat.sendMessage({{ text: {json.dumps(TURNS[number][0][1])} }})")

    def say(self, *said: Yielded) -> None:
        self.page.pods.say(*said)

    def end(self, *said: Yielded) -> None:
        self.page.pods.say(*said)
        self.page.pods.finish()

    async def whole(self, last: str) -> None:
        """Wait until an answer is over that ends so."""
        said = f"JSON.stringify(s.messages.at(-1)).includes({json.dumps(last)})"
        await self.page.until(f"s.status === 'ready' && s.messages.at(-1).metadata?.status && {said}")


async def agree(page: ChatPage, shown: list[dict[str, Any]]) -> None:
    """Compare what everybody knows of the conversation with what was said."""
    whole = [said for turn in TURNS for said in turn]
    assert list(of_page(shown)) == whole
    ids = [message["id"] for message in shown]
    assert len(set(ids)) == len(ids) == 2 * len(TURNS)
    for request in page.pods.tap.requests:
        known = list(of_provider(messages(request.input)))
        # A provider gets no reasoning, and a request ends with a question or with results.
        assert known == [said for said in whole if said[0] != "reasoning"][: len(known)]
        assert known[-1][0] in {"user", "result"}
    assert summed(await of_log(page)) == summed(
        said for said in whole if said[0] != "user" and not is_of_the_page(said)
    )


def is_of_the_page(said: Said) -> bool:
    """Whether no generator said something: the results of the page's tools, and that a call was broken off."""
    return said[0] == "result" and (said[1][0] in "wk" or said[2] == BROKEN_OFF)


def of_page(shown: Iterable[dict[str, Any]]) -> Iterator[Said]:
    """What a page shows. It shows a result in the part of its call; here the results of a step follow its calls."""
    for message in shown:
        results: list[Said] = []
        for part in message["parts"]:
            kind = part["type"]
            if kind.startswith("tool-"):
                yield "call", part["toolCallId"], kind.removeprefix("tool-"), part["input"]
                broken_off = part["state"] == "input-streaming"
                results.append(("result", part["toolCallId"], BROKEN_OFF if broken_off else part["output"]))
                continue
            yield from results
            results = []
            if kind != "step-start":
                yield message["role"] if message["role"] == "user" else kind, part["text"]
        yield from results


def of_provider(known: Iterable[dict[str, Any]]) -> Iterator[Said]:
    """What a provider was sent, in the form of Chat Completions."""
    for message in known:
        role, content = message["role"], message["content"]
        if role == "tool":
            yield "result", message["tool_call_id"], value_of(content)
            continue
        if content:
            yield "user" if role == "user" else "text", content
        for each in message.get("tool_calls", []):
            yield "call", each["id"], each["function"]["name"], value_of(each["function"]["arguments"])


async def of_log(page: ChatPage) -> list[Said]:
    """What the snapshots of all answers hold."""
    said: list[Said] = []
    for stream_id in await page.cluster.pool.fetch("SELECT id FROM baton.stream ORDER BY id"):
        found = (await page.cluster.client.get(f"{page.pods.second}/v1/streams/{stream_id['id']}")).json()
        said += [("text", found["text"]), ("reasoning", found["reasoning"])]
        said += [("call", one["id"], one["name"], value_of(one["arguments"])) for one in found["tool_calls"]]
        said += [("result", one["id"], one["result"]) for one in found["tool_results"]]
    return said


def summed(said: Iterable[Said]) -> dict[str, Any]:
    """What was said by kind, since a snapshot does not keep the order of texts and calls."""
    given = list(said)
    texts = {kind: "".join(one[1] for one in given if one[0] == kind) for kind in ("text", "reasoning")}
    return texts | {kind: [one[1:] for one in given if one[0] == kind] for kind in ("call", "result")}


def value_of(text: str) -> Any:
    """Read JSON, also of the call that was stopped; anything else is a text."""
    for whole in (text, text + "}"):
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(whole)
    return text
