"""Clients of all dialects that parse every byte strictly: one connection each, from the create to the end.

A dialect's class knows how a stream is created and what the response must be, frame by frame. `tokens` counts the
deltas that have been received, and `text` joins them. `check` is for the end of the response.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from itertools import groupby
from typing import Any, ClassVar
from uuid import uuid4

import httpx2
import orjson

GENERATOR = "continuing"


class Client:
    """Creates a stream, and reads the answer over the same connection."""

    path: ClassVar[str]
    accept: ClassVar[str] = "text/event-stream"

    def __init__(self) -> None:
        self.deltas: list[str] = []

    @property
    def tokens(self) -> int:
        """How many deltas it has."""
        return len(self.deltas)

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self.deltas)

    def body(self, message: str) -> dict[str, Any]:
        """What creates the stream."""
        raise NotImplementedError

    def feed(self, part: bytes) -> None:
        """Read a part of the response."""
        raise NotImplementedError

    def check(self) -> None:
        """Check that the answer is complete, now that the response has ended without an error."""
        raise NotImplementedError

    async def run(self, http: httpx2.AsyncClient, url: str, message: str, creating: asyncio.Semaphore) -> None:
        """Create the stream and read it to its end. A connection that is cut raises.

        `creating` is held until the response begins: a pod refuses a caller with too many requests in progress.
        """
        headers = {"accept": self.accept}
        async with contextlib.AsyncExitStack() as stack:
            # Plain text has no keep-alives, so on a slow machine it may be silent for long. The caller has deadlines.
            connecting = http.stream(
                "POST", url + self.path, json=self.body(message), headers=headers, timeout=httpx2.Timeout(None)
            )
            async with creating:
                response = await stack.enter_async_context(connecting)
            assert response.status_code in {200, 201}, await response.aread()
            assert response.headers["content-type"] != "application/json"
            async for part in response.aiter_raw():
                self.feed(part)
        self.check()


class Text(Client):
    """Plain text: nothing but the answer."""

    path = "/v1/streams"
    accept = "text/plain"

    def __init__(self) -> None:
        super().__init__()
        self._rest = b""

    def body(self, message: str) -> dict[str, Any]:
        return {"generator": GENERATOR, "input": message}

    def feed(self, part: bytes) -> None:
        *words, self._rest = (self._rest + part).split(b" ")
        self.deltas += [f"{word.decode('ascii')} " for word in words]

    def check(self) -> None:
        assert self._rest == b""


class EventStream(Client):
    """Blocks of `field: value` lines. Comments may stand alone or before a frame."""

    def __init__(self) -> None:
        super().__init__()
        self._rest = b""
        self.kinds: list[str] = []

    def feed(self, part: bytes) -> None:
        *blocks, self._rest = (self._rest + part).split(b"\n\n")
        for block in blocks:
            lines = [line for line in block.split(b"\n") if not line.startswith((b":", b"retry: "))]
            fields = [line.decode().partition(": ")[::2] for line in lines if line]
            if fields:
                self.take(fields)

    def take(self, fields: Sequence[tuple[str, str]]) -> None:
        """Read one frame."""
        raise NotImplementedError

    def check(self) -> None:
        assert self._rest == b""
        assert self.kinds[-1] == self.end
        assert [kind for kind, _ in groupby(self.kinds)] == self.order

    end: ClassVar[str]

    @property
    def order(self) -> list[str]:
        """The kinds of frames of a whole answer, each run of equal ones once."""
        raise NotImplementedError


class Native(EventStream):
    """Numbered events. A take-over is one `resumed`; nothing else but text and `done` may come."""

    path = "/v1/streams"
    end = "done"

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str] = []

    def body(self, message: str) -> dict[str, Any]:
        return {"generator": GENERATOR, "input": message}

    def take(self, fields: Sequence[tuple[str, str]]) -> None:
        (first, number), (second, data) = fields
        assert (first, second) == ("id", "data")
        assert int(number) == len(self.kinds) + 1, "a number is missing, repeated or out of order"
        event = orjson.loads(data)
        match event.pop("type"):
            case "text" as kind:
                self.deltas.append(event.pop("delta"))
                assert event == {}
            case "resumed" as kind:
                self.reasons.append(event.pop("reason"))
                assert event.pop("run") == len(self.reasons) + 1
                assert event == {}
            case "done" as kind:
                assert event["status"] == "completed"
            case other:
                raise AssertionError(f"{other} {event}")
        self.kinds.append(kind)

    @property
    def order(self) -> list[str]:
        pauses = [kind for kind, _ in groupby(self.kinds) if kind == "resumed"]
        return [*(kind for pause in pauses for kind in ("text", pause)), "text", "done"]


class Responses(EventStream):
    """Responses API: frames with a number from 0 on."""

    path = "/v1/responses"
    end = "response.completed"
    order = [  # noqa: RUF012
        *("response.created", "response.queued", "response.in_progress", "response.output_item.added"),
        *("response.content_part.added", "response.output_text.delta", "response.output_text.done"),
        *("response.content_part.done", "response.output_item.done", "response.completed"),
    ]

    def body(self, message: str) -> dict[str, Any]:
        return {"model": GENERATOR, "input": message, "stream": True}

    def take(self, fields: Sequence[tuple[str, str]]) -> None:
        (first, kind), (second, data) = fields
        assert (first, second) == ("event", "data")
        frame = orjson.loads(data)
        assert (frame["type"], frame["sequence_number"]) == (kind, len(self.kinds))
        self.kinds.append(kind)
        if kind == "response.output_text.delta":
            self.deltas.append(frame["delta"])
        elif kind == "response.output_text.done":
            assert frame["text"] == self.text
        elif kind == self.end:
            [item] = frame["response"]["output"]
            assert [part["text"] for part in item["content"]] == [self.text]


class Chat(EventStream):
    """Chat Completions: chunks of one choice."""

    path = "/v1/chat/completions"
    end = "[DONE]"
    order = ["role", "content", "stop", "[DONE]"]  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self._ids: set[str] = set()

    def body(self, message: str) -> dict[str, Any]:
        return {"model": GENERATOR, "messages": [{"role": "user", "content": message}], "stream": True}

    def take(self, fields: Sequence[tuple[str, str]]) -> None:
        [(name, data)] = fields
        assert name == "data"
        self.kinds.append("[DONE]" if data == "[DONE]" else self._chunk(orjson.loads(data)))

    def _chunk(self, chunk: dict[str, Any]) -> str:
        assert "error" not in chunk, chunk
        self._ids.add(chunk["id"])
        assert len(self._ids) == 1
        [choice] = chunk["choices"]
        if choice["finish_reason"] is not None:
            assert choice["delta"] == {}
            return str(choice["finish_reason"])
        if "role" in choice["delta"]:
            assert choice["delta"] == {"role": "assistant", "content": ""}
            return "role"
        assert choice["delta"].keys() == {"content"}
        self.deltas.append(choice["delta"]["content"])
        return "content"


class AiSdk(EventStream):
    """The AI SDK's UI message stream."""

    path = "/v1/ai-sdk/chat"
    accept = "*/*"
    end = "[DONE]"
    order = [  # noqa: RUF012
        *("start", "start-step", "text-start", "text-delta", "text-end", "finish-step", "finish", "[DONE]"),
    ]

    def body(self, message: str) -> dict[str, Any]:
        return {"model": GENERATOR, "messages": [{"role": "user", "parts": [{"type": "text", "text": message}]}]}

    def take(self, fields: Sequence[tuple[str, str]]) -> None:
        [(name, data)] = fields
        assert name == "data"
        chunk = {"type": data} if data == "[DONE]" else orjson.loads(data)
        self.kinds.append(chunk["type"])
        if chunk["type"] == "text-delta":
            assert chunk.keys() == {"type", "id", "delta"}
            self.deltas.append(chunk["delta"])


class Anthropic(EventStream):
    """Anthropic's Messages: one block of text."""

    path = "/v1/messages"
    end = "message_stop"
    order = [  # noqa: RUF012
        *("message_start", "content_block_start", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]

    def body(self, message: str) -> dict[str, Any]:
        said = [{"role": "user", "content": message}]
        return {"model": GENERATOR, "max_tokens": 9, "messages": said, "stream": True}

    def take(self, fields: Sequence[tuple[str, str]]) -> None:
        (first, kind), (second, data) = fields
        assert (first, second) == ("event", "data")
        event = orjson.loads(data)
        assert event["type"] == kind
        if kind == "ping":
            return
        self.kinds.append(kind)
        if kind == "content_block_delta":
            self.deltas.append(event["delta"]["text"])


class AgUi(EventStream):
    """AG-UI: one message of text."""

    path = f"/v1/ag-ui/{GENERATOR}"
    end = "RUN_FINISHED"
    order = [  # noqa: RUF012
        *("RUN_STARTED", "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END", "RUN_FINISHED"),
    ]

    def body(self, message: str) -> dict[str, Any]:
        run = str(uuid4())
        return {"threadId": run, "runId": run, "messages": [{"id": "u", "role": "user", "content": message}]}

    def take(self, fields: Sequence[tuple[str, str]]) -> None:
        [(name, data)] = fields
        assert name == "data"
        event = orjson.loads(data)
        self.kinds.append(event["type"])
        if event["type"] == "TEXT_MESSAGE_CONTENT":
            self.deltas.append(event["delta"])


class LangGraph(EventStream):
    """LangGraph: numbered frames of a run in two modes. A number that is left out is one of another mode."""

    path = "/v1/langgraph/runs/stream"
    end = "end"
    order = ["metadata", "values", "messages", "values", "end"]  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self._number = 0

    def body(self, message: str) -> dict[str, Any]:
        said = {"messages": [{"role": "user", "content": message}]}
        return {"assistant_id": GENERATOR, "input": said, "stream_mode": ["messages-tuple", "values"]}

    def take(self, fields: Sequence[tuple[str, str]]) -> None:
        (first, number), (second, kind), (third, data) = fields
        assert (first, second, third) == ("id", "event", "data")
        assert int(number) > self._number
        self._number = int(number)
        self.kinds.append(kind)
        content = orjson.loads(data)
        if kind == "messages" and content[0]["content"]:
            self.deltas.append(content[0]["content"])
        elif kind == "values" and self.deltas:
            assert content["messages"][-1]["content"] == self.text


class AiSdkData(Client):
    """The data stream of AI SDK 4: a part a line."""

    path = "/v1/ai-sdk/v4/chat"
    accept = "*/*"

    def __init__(self) -> None:
        super().__init__()
        self._rest = b""
        self._codes: list[str] = []

    def body(self, message: str) -> dict[str, Any]:
        return {"model": GENERATOR, "messages": [{"role": "user", "content": message}]}

    def feed(self, part: bytes) -> None:
        *lines, self._rest = (self._rest + part).split(b"\n")
        for code, _, data in (line.decode().partition(":") for line in lines if line):
            self._codes.append(code)
            if code == "0":
                self.deltas.append(orjson.loads(data))

    def check(self) -> None:
        assert self._rest == b""
        assert [code for code, _ in groupby(self._codes)] == ["f", "0", "e", "d"]


DIALECTS: Sequence[type[Client]] = (Native, Responses, AiSdk, Chat, Text, Anthropic, AgUi, LangGraph, AiSdkData)
