"""A server with OpenAI's Responses API in background mode: a Response is generated whether or not anybody reads it.

It has `POST /v1/responses`, `GET /v1/responses/{id}` with `stream` and `starting_after`, and `POST
/v1/responses/{id}/cancel`, with OpenAI's event types, numbers, statuses and errors. Without `background`, a Response
ends with its connection.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from tests.support.pacing import Pace
from tests.support.provider_server import CLOSING, LAST_FRAME, ProviderServer, Received, Reply, event_frames, refusal

INPUT_TOKENS: Final = 7
LIVE: Final = ("queued", "in_progress")


@dataclass(frozen=True, slots=True)
class Item:
    """An output item: a message, a summary of reasoning, or a call of the function `name`.

    Without an `id`, it has the number of its place in the Response.
    """

    tokens: Sequence[str]
    kind: str = "message"
    name: str = ""
    id: str = ""


@dataclass(eq=False, slots=True)
class Generation:
    """One Response: its events so far, and how it stands."""

    id: str
    body: dict[str, Any]
    status: str = "queued"
    events: list[dict[str, Any]] = field(default_factory=list)
    output: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0
    error: dict[str, Any] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def over(self) -> bool:
        return self.status not in LIVE

    @property
    def usage(self) -> dict[str, Any] | None:
        if self.status not in {"completed", "incomplete"}:
            return None
        return {
            "input_tokens": INPUT_TOKENS,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": self.tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": INPUT_TOKENS + self.tokens,
        }

    def response(self) -> dict[str, Any]:
        """The object `response`."""
        return {
            "id": self.id,
            "object": "response",
            "created_at": 1_764_000_000,
            "status": self.status,
            "background": bool(self.body.get("background")),
            "error": self.error,
            "incomplete_details": None,
            "model": self.body.get("model"),
            "output": list(self.output),
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "store": bool(self.body.get("store", True)),
            "usage": self.usage,
        }

    def add(self, kind: str, **fields: Any) -> None:
        self.events.append({"type": f"response.{kind}", "sequence_number": len(self.events), **fields})
        self.notice()

    def notice(self) -> None:
        """Wake the readers."""
        self.changed.set()
        self.changed = asyncio.Event()

    def end(self, status: str) -> None:
        """End as OpenAI does: with a terminal event, unless it was cancelled."""
        self.status = status
        if status != "cancelled":
            self.add(status, response=self.response())
        self.notice()


class OpenAIServer(ProviderServer):
    """Generates `items` for each request, at a pace, and counts what it is asked.

    `cursors` has the `starting_after` of each streamed retrieval, None if it had none. `cancels` has the Responses that
    a client cancelled. `fail_after` is the number of tokens after which a Response fails.
    """

    def __init__(self, *items: Item, pace: Pace | None = None) -> None:
        super().__init__()
        self.items = items
        self.pace = pace or Pace()
        self.generations: dict[str, Generation] = {}
        self.cursors: list[int | None] = []
        self.cancels: list[str] = []
        self.retrievals = 0  # without a stream
        self.fail_after: int | None = None
        self.streams_recent_only = False  # refuse to stream, as OpenAI does after some minutes
        self.refusals: list[Reply] = []  # the answers to the next requests
        self.refused_cancels: list[Reply] = []
        self.silent_cancels = False  # a cancel is not answered, and does nothing
        self.unanswered = 0
        self._generating: dict[str, asyncio.Task[None]] = {}
        self._streaming: set[asyncio.StreamWriter] = set()
        self._started = 0

    @property
    def started(self) -> int:
        """How many Responses were begun."""
        return self._started

    @property
    def tokens(self) -> int:
        """How many tokens were generated, for all Responses."""
        return sum(generation.tokens for generation in self.generations.values())

    @property
    def live(self) -> list[Generation]:
        """The Responses that are being generated."""
        return [generation for generation in self.generations.values() if not generation.over]

    @property
    def readers(self) -> int:
        """How many connections read a Response."""
        return len(self._streaming)

    @property
    def only(self) -> Generation:
        """The only Response."""
        (generation,) = self.generations.values()
        return generation

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._generating.values():
            task.cancel()
        await asyncio.gather(*self._generating.values(), return_exceptions=True)
        await super().__aexit__(kind, error, trace)

    def items_for(self, _body: dict[str, Any]) -> Sequence[Item]:
        """Return what a request gets."""
        return self.items

    def drop(self) -> None:
        """Break the connections that read a Response. The Responses continue."""
        for writer in self._streaming:
            writer.transport.abort()

    def forget(self) -> None:
        """Delete all Responses, as OpenAI does some time after they were generated. They are generated to their end."""
        self.generations.clear()

    async def respond(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Route a request."""
        url = urlsplit(request.path)
        rest = url.path.removeprefix("/v1/responses").strip("/").split("/")
        if rest[-1] == "cancel" and self.silent_cancels:
            self.unanswered += 1
            return await self.send(Reply(silent=True, ending="hang"), reader, writer)
        if rest[-1] == "cancel":
            return await self.send(self._cancel(rest[0]), reader, writer)
        if self.refusals:
            return await self.send(self.refusals.pop(0), reader, writer)
        if not rest[0]:
            return await self._create(request.body, reader, writer)
        return await self._retrieve(rest[0], parse_qs(url.query), reader, writer)

    async def _create(self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if body.get("background") and body.get("store") is False:
            return await self.send(_invalid("Background mode requires store to be true."), reader, writer)
        self._started += 1
        generation = Generation(f"resp_{self._started}", body)
        self.generations[generation.id] = generation
        task = self._generating[generation.id] = asyncio.create_task(self._generate(generation))
        whole = await self._stream(generation, -1, reader, writer)
        if not body.get("background") and not generation.over:
            task.cancel()
            generation.end("cancelled")
        return whole

    async def _retrieve(
        self, response_id: str, query: dict[str, list[str]], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        streamed = query.get("stream") == ["true"]
        after = int(query["starting_after"][0]) if "starting_after" in query else None
        if streamed:
            self.cursors.append(after)
        else:
            self.retrievals += 1
        generation = self.generations.get(response_id)
        if generation is None:
            return await self.send(_unknown(response_id), reader, writer)
        if not streamed:
            content = json.dumps(generation.response()).encode()
            return await self.send(Reply([content], content_type="application/json"), reader, writer)
        if not (generation.body.get("background") and generation.body.get("stream")):
            return await self.send(_invalid("This response was not created as a background stream."), reader, writer)
        if self.streams_recent_only:
            message = "This response can no longer be streamed because it is more than 5 minutes old."
            return await self.send(_invalid(message), reader, writer)
        return await self._stream(generation, -1 if after is None else after, reader, writer)

    def _cancel(self, response_id: str) -> Reply:
        if self.refused_cancels:
            return self.refused_cancels.pop(0)
        generation = self.generations.get(response_id)
        if generation is None:
            return _unknown(response_id)
        self.cancels.append(response_id)
        if generation.status == "completed":
            return _invalid("Cannot cancel a completed response.")
        if not generation.over:
            self._generating[response_id].cancel()
            generation.end("cancelled")
        return Reply([json.dumps(generation.response()).encode()], content_type="application/json")

    async def _stream(
        self, generation: Generation, after: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Send the events after a number, as they come, and close the connection."""
        self._streaming.add(writer)
        gone = asyncio.create_task(reader.read(1))
        try:
            await self.begin(CLOSING, writer)
            async for event in _events(generation, after, gone):
                await self.send_frame(event_frames(event)[0], writer)
            writer.write(LAST_FRAME)
            return False
        finally:
            gone.cancel()
            self._streaming.discard(writer)

    async def _generate(self, generation: Generation) -> None:
        generation.add("created", response=generation.response())
        generation.add("queued", response=generation.response())
        generation.status = "in_progress"
        generation.add("in_progress", response=generation.response())
        for index, item in enumerate(self.items_for(generation.body)):
            for token, event in _events_of(item, index, generation):
                if token:
                    await self.pace.wait()
                    if self.fail_after is not None and generation.tokens >= self.fail_after:
                        generation.error = {"code": "server_error", "message": "The model failed."}
                        generation.end("failed")
                        return
                    generation.tokens += 1
                generation.add(event.pop("type"), **event)
        generation.end("completed")


def _invalid(message: str) -> Reply:
    return refusal(400, {"message": message, "type": "invalid_request_error", "param": None, "code": None})


def _unknown(response_id: str) -> Reply:
    message = f"Response with id '{response_id}' not found."
    return refusal(404, {"message": message, "type": "invalid_request_error", "param": None, "code": None})


async def _events(generation: Generation, after: int, gone: asyncio.Task[bytes]) -> AsyncIterator[dict[str, Any]]:
    """Yield the events after a number until the Response is over, or the reader gone."""
    number = after + 1
    while not gone.done():
        changed = generation.changed
        while number < len(generation.events):
            yield generation.events[number]
            number += 1
        if generation.over:
            return
        waiting = asyncio.create_task(changed.wait())
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()


def _events_of(item: Item, index: int, generation: Generation) -> Iterator[tuple[bool, dict[str, Any]]]:
    """Yield an item's events; with each, whether it holds a token."""
    place = {"item_id": item.id or f"item_{index}", "output_index": index}
    whole = "".join(item.tokens)
    part: dict[str, Any]
    ended: dict[str, Any]
    begun, done = _objects(item, index, whole)
    yield False, {"type": "output_item.added", "output_index": index, "item": begun}
    if item.kind == "function_call":
        kind, ended = "function_call_arguments", {"arguments": whole, "name": item.name}
    elif item.kind == "reasoning":
        part = {"type": "summary_text", "text": ""}
        yield False, {"type": "reasoning_summary_part.added", **place, "summary_index": 0, "part": part}
        place["summary_index"] = 0
        kind, ended = "reasoning_summary_text", {"text": whole}
    else:
        part = {"type": "output_text", "text": "", "annotations": []}
        yield False, {"type": "content_part.added", **place, "content_index": 0, "part": part}
        place["content_index"] = 0
        kind, ended = "output_text", {"text": whole, "logprobs": []}
    generation.output.append(begun)
    shown = ""
    for token in item.tokens:
        yield True, {"type": f"{kind}.delta", **place, "delta": token}
        shown += token
        generation.output[index] = _objects(item, index, shown)[1] | {"status": "in_progress"}
    yield False, {"type": f"{kind}.done", **place, **ended}
    generation.output[index] = done
    yield False, {"type": "output_item.done", "output_index": index, "item": done}


def _objects(item: Item, index: int, whole: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an item as it begins and as it ends."""
    begun: dict[str, Any]
    done: dict[str, Any]
    common: dict[str, Any] = {"id": item.id or f"item_{index}", "type": item.kind}
    if item.kind == "function_call":
        common |= {"call_id": item.id or f"call_{index}", "name": item.name}
        begun, done = {"arguments": ""}, {"arguments": whole}
    elif item.kind == "reasoning":
        begun, done = {"summary": []}, {"summary": [{"type": "summary_text", "text": whole}]}
    else:
        common |= {"role": "assistant"}
        text = {"type": "output_text", "text": whole, "annotations": []}
        begun, done = {"content": []}, {"content": [text]}
    return common | begun | {"status": "in_progress"}, common | done | {"status": "completed"}
