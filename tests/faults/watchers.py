"""Clients of the dialects with a cursor. They reconnect by themselves and keep all frames."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import httpx2
import orjson
from tests.support.logbook import until

from baton.generators import GenerationRequest

NATIVE: Final = "native"
RESPONSES: Final = "responses"
AI_SDK: Final = "ai-sdk"
DIALECTS: Final = (NATIVE, RESPONSES, AI_SDK)


class Script:
    """A generator whose streams are named by their input, and go as far as a test allows. Each run yields another text.

    What two runs have said can so be told apart wherever it was mixed.
    """

    def __init__(self) -> None:
        self._allowed: dict[str, int] = {}
        self._over: set[str] = set()
        self._changed = asyncio.Event()
        self._runs = count(1)

    async def __call__(self, request: GenerationRequest, /) -> Any:
        run, said = next(self._runs), 0
        while True:
            changed = self._changed
            while said < self._allowed.get(request.input, 0):
                said += 1
                yield f"<{run}.{said}>"
            if request.input in self._over:
                return
            await changed.wait()

    def let(self, name: str, events: int, *, end: bool = False) -> None:
        """Let a stream yield this many events in all."""
        self._allowed[name] = events
        if end:
            self._over.add(name)
        self._changed.set()
        self._changed = asyncio.Event()


@dataclass(eq=False)
class Watcher:
    """One client: `frames` is all that it was ever sent, in order; `refusal` the answer that made it give up."""

    http: httpx2.AsyncClient
    pods: list[str]
    dialect: str
    stream_id: str
    frames: list[dict[str, Any]] = field(default_factory=list)
    refusal: tuple[int, str] | None = None
    ended: bool = False
    connections: int = 0

    async def watch(self) -> None:
        """Follow over any pod until the end, or a refusal."""
        for number in count():
            with contextlib.suppress(httpx2.TransportError):
                await self.connect(self.pods[number % len(self.pods)])
            if self.ended or self.refusal is not None:
                return
            await asyncio.sleep(0.05)

    async def connect(self, pod: str, cursor: int | None = None) -> None:
        """Follow through one connection, after what it has or the frames that `cursor` says."""
        path, params, headers = asking(self.dialect, self.stream_id, len(self.frames) if cursor is None else cursor)
        async with self.http.stream("GET", f"{pod}{path}", params=params, headers=headers) as response:
            if response.status_code == 503:
                return
            if response.status_code != 200:
                await response.aread()
                self.refusal = (response.status_code, _code(response))
                return
            self.connections += 1
            await self._read(response)

    async def _read(self, response: httpx2.Response) -> None:
        rest = b""
        async for piece in response.aiter_bytes():
            *blocks, rest = (rest + piece).split(b"\n\n")
            for block in blocks:
                data = [line[6:] for line in block.split(b"\n") if line.startswith(b"data: ")]
                if data == [b"[DONE]"]:
                    self.ended = True
                elif data:
                    assert not self.ended, "a frame after the end"
                    self._take(orjson.loads(b"\n".join(data)), block)

    def _take(self, frame: dict[str, Any], block: bytes) -> None:
        if self.dialect == NATIVE:
            assert block.startswith(b"id: %d\n" % (len(self.frames) + 1)), "a number is missing or comes again"
        elif self.dialect == RESPONSES:
            assert frame["sequence_number"] == len(self.frames), "a number is missing or comes again"
        self.frames.append(frame)
        if frame["type"] in {"done", "response.completed", "response.failed", "response.incomplete"}:
            self.ended = True

    @property
    def texts(self) -> list[str]:
        """The deltas since the last reset."""
        found: list[str] = []
        for frame in self.frames:
            if frame["type"] == "reset":
                found = []
            elif frame["type"] in {"text", "response.output_text.delta", "text-delta"}:
                found.append(frame["delta"])
        return found

    @property
    def code(self) -> str | None:
        """How it ended: `completed`, the code of a failure or `failed` where the dialect has none, or of a refusal."""
        if self.refusal is not None:
            return self.refusal[1]
        last = self.frames[-1]
        match self.dialect:
            case "native":
                return last["error"]["code"] if last.get("error") else last.get("status")
            case "responses":
                return str(last["response"]["status"])
        return "failed" if any(frame["type"] == "error" for frame in self.frames) else "completed"

    async def has(self, texts: int) -> None:
        """Wait until it has this many deltas."""
        await until(lambda: len(self.texts) >= texts or self.refusal is not None)
        assert self.refusal is None, self.refusal

    def require_one_answer(self) -> None:
        """Fail on a contradiction: deltas of two runs without a reset, or a gap in the numbers of one."""
        texts = "".join(self.texts)
        said = [item.split(".") for item in texts.strip("<>").split("><") if item]
        assert len({run for run, _ in said}) <= 1, f"two answers are mixed: {texts}"
        assert [int(number) for _, number in said] == list(range(1, len(said) + 1)), f"some of it is missing: {texts}"


def asking(dialect: str, stream_id: str, cursor: int) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Return the path, the query and the headers that ask for what follows the first frames of a stream."""
    match dialect:
        case "native":
            return f"/v1/streams/{stream_id}/events", {}, {"last-event-id": str(cursor)} if cursor else {}
        case "responses":
            name = f"resp_{stream_id.replace('-', '')}"
            after = {"starting_after": cursor - 1} if cursor else {}
            return f"/v1/responses/{name}", {"stream": "true", **after}, {}
    return f"/v1/ai-sdk/chat/run_{stream_id.replace('-', '')}/stream", {"startIndex": cursor}, {}


def _code(response: httpx2.Response) -> str:
    try:
        content = response.json()
    except ValueError:
        return ""
    return str((content.get("error") or content).get("code", ""))
