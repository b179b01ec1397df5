"""What earlier runs of a stream left in the log, and the comparison with a generator that repeats it.

A run that continues first appends a `resumed` event. It takes the place after the tail, so no batch of an earlier run
can still appear, and what `read` returns is final.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

import orjson

from ..db import event_log, stream_states
from ..db.postgres import Connection
from ..events import TOKEN_TYPES, encode_object
from ..generators import SoFar, Yielded
from ..snapshot import Snapshot

# Events of the runtime, which no generator yields.
_OURS: Final = frozenset({"resumed", "reset"})
_TEXTS: Final = frozenset({"text", "reasoning"})


@dataclass(frozen=True, slots=True)
class Past:
    """The log since its last `reset`, whose number is `base` (0: there is none), and the newest state since then."""

    base: int
    lines: Sequence[str]  # with the numbers from base + 1 on
    so_far: SoFar
    state: Any = None
    state_seq: int = 0

    @property
    def empty(self) -> bool:
        """Whether viewers have got nothing that counts."""
        return all(_kind(line) in _OURS for line in self.lines)

    @property
    def tokens(self) -> int:
        """How many events count as tokens."""
        return sum(_kind(line) in TOKEN_TYPES for line in self.lines)

    @property
    def size_bytes(self) -> int:
        """The size of the events."""
        return sum(len(line) for line in self.lines)

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The events of tool calls."""
        return [orjson.loads(line) for line in self.lines if _kind(line) == "tool_call"]

    def after(self, seq: int) -> list[dict[str, Any]]:
        """Return the events of generators after a number."""
        return [orjson.loads(line) for line in self.lines[seq - self.base :] if _kind(line) not in _OURS]


async def read(connection: Connection, stream_id: UUID) -> Past:
    """Read what earlier runs left of a stream."""
    lines = [line async for page in event_log.pages(connection, stream_id) for batch in page for line in batch.lines]
    resets = [number for number, line in enumerate(lines, start=1) if _kind(line) == "reset"]
    base = resets[-1] if resets else 0
    found = await stream_states.read(connection, stream_id)
    seq, state = found if found is not None and found[0] >= base else (base, None)
    return Past(base, lines[base:], _so_far(lines), state, seq)


def _so_far(lines: Sequence[str]) -> SoFar:
    snapshot = Snapshot.of(lines, len(lines))
    custom: list[dict[str, Any]] = []
    for line in lines:
        match _kind(line):
            case "custom":
                event = orjson.loads(line)
                del event["type"]
                custom.append(event)
            case "reset":
                custom.clear()
    return SoFar(
        len(lines),
        snapshot.text,
        snapshot.reasoning,
        [dict(call) for call in snapshot.tool_calls],
        snapshot.tool_results,
        custom,
        snapshot.usage,
    )


def _kind(line: str) -> str:
    """Return the type of an event: every line begins with it."""
    return line[9 : line.index('"', 9)]


class OutputDiffers(Exception):
    """A generator that repeats itself yields something else than what viewers have got."""


# The key of a text that deltas make up, or None for an event that is compared as a whole.
_Key: TypeAlias = tuple[str, int] | None


class _Part(NamedTuple):
    """A text that deltas make up, or a whole event as canonical JSON."""

    key: _Key
    content: str


class Repetition:
    """What a generator still has to repeat of the log.

    Deltas are compared by their joined text, since they may be cut differently. Everything else is compared as JSON.
    The order counts. So ids and times that a generator makes must be the same in each run.
    """

    def __init__(self, events: Iterable[Mapping[str, Any]]) -> None:
        self._rest: deque[_Part] = deque()
        for event in events:
            for part in _parts(event):
                last = self._rest[-1] if self._rest else None
                if last is not None and part.key is not None and part.key == last.key:
                    self._rest[-1] = _Part(part.key, last.content + part.content)
                else:
                    self._rest.append(part)

    @property
    def complete(self) -> bool:
        """Whether everything has been repeated."""
        return not self._rest

    def strip(self, item: Yielded) -> Yielded | None:
        """Return what is new in an item: the end of a delta, or None.

        Raises:
            OutputDiffers: it is not what the log has.
        """
        for number, part in enumerate(_parts(item)):
            if self.complete:
                return item if number == 0 else _with_text(item, part.content)
            if new := self._take(part):
                return _with_text(item, new)
        return None

    def _take(self, part: _Part) -> str:
        """Take a part off the rest; return what exceeds it."""
        content = part.content
        while self._rest:
            expected = self._rest[0]
            if part.key is None or expected.key is None:
                if part != expected:
                    raise OutputDiffers
                self._rest.popleft()
                return ""
            size = min(len(content), len(expected.content))
            if part.key != expected.key or content[:size] != expected.content[:size]:
                raise OutputDiffers
            content = content[size:]
            if size < len(expected.content):
                self._rest[0] = _Part(expected.key, expected.content[size:])
            else:
                self._rest.popleft()
            if not content:
                return ""
        return content


def _parts(item: Yielded) -> list[_Part]:
    """Take an item apart: a delta is one text, and the first event of a tool call also says which call it is."""
    if isinstance(item, str):
        return [_Part(("text", 0), item)] if item else []
    kind = item["type"]
    if kind in _TEXTS:
        return [_Part((kind, 0), item["delta"])] if item["delta"] else []
    if kind != "tool_call":
        return [_Part(None, _canonical(item))]
    delta = item.get("arguments_delta") or ""
    about = {name: value for name, value in item.items() if name != "arguments_delta" and value is not None}
    found = [] if about.keys() <= {"type", "index"} else [_Part(None, _canonical(about))]
    return [*found, _Part((kind, item["index"]), delta)] if delta else found


def _with_text(item: Yielded, text: str) -> Yielded:
    if isinstance(item, str):
        return text
    if item["type"] == "tool_call":
        return {"type": "tool_call", "index": item["index"], "arguments_delta": text}
    return {**item, "delta": text}


def _canonical(event: Mapping[str, Any]) -> str:
    return orjson.dumps(orjson.loads(encode_object(event)), option=orjson.OPT_SORT_KEYS).decode()
