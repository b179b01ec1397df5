"""Runs a generator as a worker does, and keeps what it yielded and how it ended."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from baton.errors import GenerationError
from baton.events import encode_event
from baton.generators import GenerationRequest, Generator
from baton.generators.protocol import Yielded


@dataclass(slots=True)
class Heard:
    """What a generator yielded; every event in it is one that the log takes."""

    events: list[dict[str, Any]] = field(default_factory=list)
    error: GenerationError | None = None

    def add(self, item: Yielded) -> None:
        event = {"type": "text", "delta": item} if isinstance(item, str) else dict(item)
        if event["type"] != "finish":
            encode_event(event)
        self.events.append(event)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    @property
    def text(self) -> str:
        return "".join(event["delta"] for event in self.of("text"))

    @property
    def reasoning(self) -> str:
        return "".join(event["delta"] for event in self.of("reasoning"))

    @property
    def finish_reason(self) -> str | None:
        finishes = self.of("finish")
        return finishes[0]["finish_reason"] if finishes else None

    @property
    def usage(self) -> dict[str, int]:
        """The last usage event's counts."""
        counts = dict(self.of("usage")[-1])
        del counts["type"]
        return counts

    @property
    def calls(self) -> list[tuple[str, str, str]]:
        """Id, name and whole arguments of each tool call, in order of their indices, which have no gaps."""
        calls: list[tuple[str, str, str]] = []
        for event in self.of("tool_call"):
            if "id" in event:
                assert event["index"] == len(calls)
                calls.append((event["id"], event["name"], ""))
            call_id, name, arguments = calls[event["index"]]
            calls[event["index"]] = (call_id, name, arguments + event.get("arguments_delta", ""))
        return calls

    @property
    def code(self) -> str | None:
        return self.error.code if self.error else None


def request(given: Any = "Say hello.", **known: Any) -> GenerationRequest:
    return GenerationRequest(stream_id=uuid.uuid4(), input=given, metadata={}, **known)


async def hear(generator: Generator, given: Any = "Say hello.") -> Heard:
    heard = Heard()
    try:
        async for item in generator(request(given)):
            heard.add(item)
    except GenerationError as error:
        heard.error = error
    return heard
