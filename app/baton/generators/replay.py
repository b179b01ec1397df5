"""The `replay` generator: plays a recorded transcript with its timing, and needs no key and no network.

A transcript is a file of JSON lines in `transcripts/`, named `<name>.jsonl`. The first line describes it:

    {"title": "Title for the reader", "words": ["words", "that", "choose", "it"]}

Each further line is one event as a generator yields it (see `protocol`), with `wait_ms`, the milliseconds
since the event before it:

    {"wait_ms": 412, "type": "reasoning", "delta": "They"}
    {"wait_ms": 21, "type": "text", "delta": " the"}

The last line is the `finish` event, and the one before it the `usage`. Each line holds about one token.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Self

import orjson

from ..errors import GenerationError
from ..settings import Settings
from .conversation import messages
from .protocol import GenerationRequest, Yielded, refuse_approvals

DEFAULT_TRANSCRIPT = "outlive"

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Transcript:
    """A recorded answer: its events, and when each is due, in seconds."""

    name: str
    title: str
    words: frozenset[str]
    events: tuple[tuple[float, Mapping[str, Any]], ...]

    @classmethod
    def parse(cls, name: str, content: bytes) -> Self:
        """Read a transcript file."""
        head, *lines = map(orjson.loads, content.splitlines())
        due, events = 0, []
        for line in lines:
            due += line.pop("wait_ms")
            events.append((due / 1000, line))
        return cls(name, head["title"], frozenset(head["words"]), tuple(events))

    @property
    def text(self) -> str:
        """Its text, without reasoning and tools."""
        return "".join(event["delta"] for _, event in self.events if event["type"] == "text")

    @property
    def duration_seconds(self) -> float:
        """Its duration at normal speed."""
        return self.events[-1][0]


class ReplayGenerator:
    """Plays the transcript that the input names, or else the one with the last matching word of the user.

    A later run repeats the transcript without its pauses as far as the earlier ones came, and plays the rest.
    """

    continues = True

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._speed = settings.replay_speed
        self._transcripts = load_transcripts()

    async def __call__(self, request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        """Yield the events of a transcript, each when it is due."""
        refuse_approvals("replay", request)
        transcript, speed = self.choose(request.input), self._speed_of(request.input)
        start: float | None = None
        played, known = 0, len(request.so_far.text) + len(request.so_far.reasoning)
        if request.run > 1:
            yield {"type": "continue", "after": request.state_seq}
        for due_seconds, event in transcript.events:
            if played >= known:
                if start is None:
                    start = self._clock() - (due_seconds / speed if known else 0)
                # Relative to the start, so that delays do not add up.
                await self._sleep(max(0, start + due_seconds / speed - self._clock()))
            played += len(event.get("delta", ""))
            yield event["delta"] if event["type"] == "text" else dict(event)

    def choose(self, given: Any) -> Transcript:
        """Return the transcript for an input.

        Raises:
            GenerationError: it names one that does not exist.
        """
        name = given.get("transcript") if isinstance(given, Mapping) else None
        if name is None:
            return self._transcripts[self._name_for(given)]
        if not isinstance(name, str) or name not in self._transcripts:
            known = ", ".join(sorted(self._transcripts))
            raise GenerationError(
                "invalid_input", f"There is no transcript {name!r:.80}.", operator=f"there are {known}"
            )
        return self._transcripts[name]

    def _name_for(self, given: Any) -> str:
        text = _last_words(given)
        if text.strip() in self._transcripts:
            return text.strip()
        for word in reversed(_WORD.findall(text.lower())):
            for transcript in self._transcripts.values():
                if word in transcript.words:
                    return transcript.name
        return DEFAULT_TRANSCRIPT

    def _speed_of(self, given: Any) -> float:
        speed = given.get("speed") if isinstance(given, Mapping) else None
        if speed is None:
            return self._speed
        if isinstance(speed, bool) or not isinstance(speed, int | float) or not 0.01 <= speed <= 1000:
            raise GenerationError("invalid_input", f"The speed must be a number from 0.01 to 1000, not {speed!r:.80}.")
        return speed


def _last_words(given: Any) -> str:
    """Return the user's last message; the whole input if it is not a conversation."""
    try:
        questions = [item.get("content") for item in messages(given) if item.get("role", "user") == "user"]
    except GenerationError:
        questions = []
    content = questions[-1] if questions else given
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else orjson.dumps(content, default=str).decode()


def load_transcripts() -> dict[str, Transcript]:
    """Read the transcripts of the package, by name."""
    files = resources.files(__package__).joinpath("transcripts").iterdir()
    names = sorted((file.name.removesuffix(".jsonl"), file) for file in files if file.name.endswith(".jsonl"))
    return {name: Transcript.parse(name, file.read_bytes()) for name, file in names}


def build(settings: Settings) -> ReplayGenerator:
    """Return the generator."""
    return ReplayGenerator(settings)
