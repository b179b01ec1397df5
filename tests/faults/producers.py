"""Producers of external streams: each appends over HTTP to any pod, and repeats what has no known outcome."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import httpx2
import orjson

from baton.api.content_types import EVENTS as EVENTS_TYPE


@dataclass(eq=False)
class Producer:
    """Appends texts of one run, `<1.1>`, `<1.2>`, …, one at a time.

    `refusal` is what made it give up, and `unknown` how many appends were answered with 503.
    """

    http: httpx2.AsyncClient
    pods: Sequence[str]
    stream_id: str
    name: str | None = "p"
    epoch: int = 0
    said: int = 0
    appends: int = 0
    unknown: int = 0
    refusal: tuple[int, str, bool] | None = None

    def __post_init__(self) -> None:
        self._pods = cycle(self.pods)

    async def say(self, texts: int, *, end: bool = False) -> None:
        """Append until this many texts are written in all, or an append is refused for good."""
        while self.said < texts and self.refusal is None:
            last = end and self.said + 1 == texts
            await self._append([{"type": "text", "delta": f"<1.{self.said + 1}>"}], end=last)
            self.said += 1

    async def _append(self, messages: list[dict[str, object]], *, end: bool) -> None:
        headers = {"content-type": EVENTS_TYPE} | ({"stream-closed": "true"} if end else {})
        if self.name is not None:
            headers |= {"producer-id": self.name, "producer-epoch": f"{self.epoch}", "producer-seq": f"{self.appends}"}
        answer = None
        while answer is None or answer.status_code == 503:
            url = f"{next(self._pods)}/v1/stream/{self.stream_id}"
            with contextlib.suppress(httpx2.TransportError):
                answer = await self.http.post(url, content=orjson.dumps(messages), headers=headers)
                self.unknown += answer.status_code == 503
        self.appends += 1
        if answer.status_code not in {200, 204}:
            closed = answer.headers.get("stream-closed") == "true"
            self.refusal = (answer.status_code, str(answer.json()["code"]), closed)
