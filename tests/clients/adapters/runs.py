"""Runs of a generator without a worker: what one run keeps is there for the next one."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from baton.generators import GenerationRequest, Generator, SoFar
from baton.generators.inbox import Inbox, InputMemory
from baton.generators.steps import StepMemory, Steps


class Runs:
    """Runs a generator as often as asked, for one stream."""

    def __init__(self, generator: Generator, given: Any = "Tell me about bees.") -> None:
        self.inputs, self._store = InputMemory(), StepMemory()
        self._generator, self._given, self._id = generator, given, uuid.uuid4()

    def start(self, so_far: SoFar | None = None) -> Any:
        inbox, steps = Inbox(self.inputs), Steps(self._store)
        return self._generator(
            GenerationRequest(self._id, self._given, {}, so_far=so_far or SoFar(), steps=steps, inbox=inbox)
        )

    async def run(self, so_far: SoFar | None = None) -> list[Any]:
        return [event async for event in self.start(so_far)]


def of(found: list[Any], kind: str) -> list[dict[str, Any]]:
    """The events of a type."""
    return [dict(event) for event in found if isinstance(event, Mapping) and event["type"] == kind]


def said(found: list[Any]) -> str:
    """The text."""
    return "".join(event for event in found if isinstance(event, str))
