"""Agents for workers that are processes of their own: they wait for an approval, or receive inputs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any, Final

import baton
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded

CALL: Final = {"type": "tool_call", "index": 0, "id": "c", "name": "delete", "arguments_delta": '{"n":3}'}
REASON: Final = {"type": "approval", "calls": ["c"]}
QUESTION: Final = "May I? "
ENDS: Final = {True: "Deleted 3.", False: "Kept.", None: "Nobody answered."}


class Tool:
    """A tool that counts its calls in a file, one line for each."""

    def __init__(self, request: GenerationRequest) -> None:
        self._stream = request.stream_id
        self._calls = Path(request.input["calls"])

    def delete(self, count: int) -> int:
        with self._calls.open("a") as calls:
            calls.write(f"{self._stream}\n")
        return count


@baton.continues
async def approving(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Ask before a tool runs.

    The input has the file `calls`, and perhaps: `pause`, the seconds between the question and the wait; `until`, the
    seconds of the wait; `end`, a file without which the answer does not end after the tool.
    """
    given = request.input
    if request.state is None:
        for item in question():
            yield item
        await asyncio.sleep(given.get("pause", 0))
        yield {"type": "wait", "for": REASON, "until": given.get("until"), "state": "asked"}
        return
    yield {"type": "continue", "after": request.state_seq}
    answer = await request.receive(0)
    if answer is not None and answer["approved"]:
        yield {"type": "tool_result", "id": "c", "result": await request.step("delete", Tool(request).delete, 3)}
    while "end" in given and not Path(given["end"]).exists():  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.01)
    yield ENDS[answer and answer["approved"]]


@baton.continues
def approving_plainly(request: GenerationRequest) -> Iterator[Yielded]:
    """Do the same in a thread."""
    given = request.input
    if request.state is None:
        yield from question()
        time.sleep(given.get("pause", 0))
        yield {"type": "wait", "for": REASON, "until": given.get("until"), "state": "asked"}
        return
    yield {"type": "continue", "after": request.state_seq}
    answer = request.receive(0)
    if answer is not None and answer["approved"]:
        yield {"type": "tool_result", "id": "c", "result": request.step("delete", Tool(request).delete, 3)}
    while "end" in given and not Path(given["end"]).exists():
        time.sleep(0.01)
    yield ENDS[answer and answer["approved"]]


def question() -> Iterator[Yielded]:
    yield QUESTION
    yield CALL
    yield {"type": "tool_approval", "id": "c"}


@baton.continues
async def steered(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Receive `count` inputs, and save a state after each.

    `received` is a file in which each run notes what it receives: its number, the inputs that its state covered, and
    the data.
    """
    given: dict[str, Any] = request.input
    begun = done = request.state or 0
    yield {"type": "continue", "after": request.state_seq}
    while done < given["count"]:
        data = await request.receive()
        with Path(given["received"]).open("a") as received:  # noqa: ASYNC230
            received.write(json.dumps([request.run, begun, data]) + "\n")
        await asyncio.sleep(given["pause"])
        done += 1
        yield f"{data} "
        yield {"type": "state", "state": done}


async def quick(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Answer at once."""
    yield "Yes."
