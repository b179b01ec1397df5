"""`baton tail`: follows a stream in the terminal to its end, through any pod."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

import httpx2
import orjson
from rich.console import Console

from ..client import Connected, Disconnected, Follower, Sighting
from ..errors import FollowError
from .addresses import pod_address, stream_id
from .terminal import AnswerPrinter, Flow, Output, end_words, words_of_wait


def run(stream: str, *, url: str, credential: str | None, cursor: int, as_json: bool) -> int:
    """Follow a stream; return 0 if it completed, 1 if it ended otherwise or cannot be followed.

    `credential`: an API key or a stream's token.

    Raises:
        ConfigurationError: the id or the address is malformed.
    """
    found = stream_id(stream)
    address = f"{pod_address(url)}/v1/streams/{found}/events"
    headers = {"authorization": f"Bearer {credential}"} if credential else {}
    shown = _Lines() if as_json else _Screen()
    try:
        asyncio.run(_follow(address, headers, cursor, shown))
    except FollowError as error:
        shown.fail(str(error))
        return 1
    return 0 if shown.status in {"completed", None} else 1


async def _follow(address: str, headers: dict[str, str], cursor: int, shown: _Lines | _Screen) -> None:
    async with (
        httpx2.AsyncClient(headers=headers) as http,
        contextlib.aclosing(Follower(http, address, cursor=cursor).run()) as sightings,
    ):
        async for sighting in sightings:
            shown.show(sighting)


class _Lines:
    """Prints one line of JSON for each event to standard output, and nothing else."""

    def __init__(self) -> None:
        self.status: str | None = None

    def show(self, sighting: Sighting) -> None:
        if isinstance(sighting, Connected | Disconnected):
            return
        self.status = sighting.event.get("status")
        sys.stdout.buffer.write(orjson.dumps({"seq": sighting.seq, **sighting.event}, option=orjson.OPT_APPEND_NEWLINE))
        sys.stdout.buffer.flush()

    def fail(self, sentence: str) -> None:
        sys.stderr.write(f"baton: {sentence}\n")


class _Screen:
    """Prints the answer as it arrives, and the state of the connection: between its lines, or else on stderr."""

    def __init__(self) -> None:
        self.status: str | None = None
        self._console = Output()
        self._flow = Flow(self._console)
        self._answer = AnswerPrinter(self._flow)
        self._errors = Console(stderr=True, highlight=False, soft_wrap=True)

    def show(self, sighting: Sighting) -> None:
        if isinstance(sighting, Connected):
            where = f"after event {sighting.cursor}" if sighting.cursor else "from the start"
            self._remark(f"· pod {sighting.pod or '?'}, {where}", "dim")
        elif isinstance(sighting, Disconnected):
            self._remark(f"· {sighting.reason}; reconnecting in {sighting.pause_seconds:.1f} s", "yellow")
        elif sighting.event.get("type") == "done":
            self._end(sighting.event)
        elif (sentence := words_of_wait(sighting.event)) is not None:
            self._answer.end()
            self._remark(f"· {sentence}", "magenta")
        else:
            self._answer.show(sighting.event)

    def fail(self, sentence: str) -> None:
        self._answer.end()
        self._errors.print(f"baton: {sentence}", markup=False)

    def _end(self, event: dict[str, Any]) -> None:
        self.status = event.get("status")
        self._answer.end()
        self._remark(end_words(event), "green" if self.status == "completed" else "red")

    def _remark(self, text: str, style: str) -> None:
        if self._console.is_terminal:
            self._flow.line(text, style)
        else:
            self._errors.print(text, markup=False)
