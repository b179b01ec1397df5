"""The comparison of a generator that repeats itself with what the log has of an earlier run."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any, Final, NamedTuple, TypeAlias

import orjson

from ..events import encode_object, without_surrogates
from ..generators import Yielded

_TEXTS: Final = frozenset({"text", "reasoning"})


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

    The time that all of it takes grows with the length of the log, and not with its square.
    """

    def __init__(self, events: Iterable[Mapping[str, Any]]) -> None:
        self._rest: deque[_Part] = deque()
        self._repeated = 0  # how many characters of the first part
        parts = (part for event in events for part in _parts(event))
        for key, group in groupby(parts, key=lambda part: part.key):
            if key is None:
                self._rest.extend(group)
            else:
                self._rest.append(_Part(key, "".join(part.content for part in group)))

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
            begin, end = self._repeated, min(self._repeated + len(content), len(expected.content))
            if part.key != expected.key or not content.startswith(expected.content[begin:end]):
                raise OutputDiffers
            content, self._repeated = content[end - begin :], end
            if end == len(expected.content):
                self._rest.popleft()
                self._repeated = 0
            if not content:
                return ""
        return content


def _parts(item: Yielded) -> list[_Part]:
    """Take an item apart: a delta is one text, and the first event of a tool call also says which call it is."""
    if isinstance(item, str):
        return [_Part(("text", 0), _stored(item))] if item else []
    kind = item["type"]
    if kind in _TEXTS:
        return [_Part((kind, 0), _stored(item["delta"]))] if item["delta"] else []
    if kind != "tool_call":
        return [_Part(None, _canonical(item))]
    delta = item.get("arguments_delta") or ""
    about = {name: value for name, value in item.items() if name != "arguments_delta" and value is not None}
    found = [] if about.keys() <= {"type", "index"} else [_Part(None, _canonical(about))]
    return [*found, _Part((kind, item["index"]), _stored(delta))] if delta else found


def _stored(text: str) -> str:
    """Return a text as the log has it."""
    return text if text.isascii() else without_surrogates(text)


def _with_text(item: Yielded, text: str) -> Yielded:
    if isinstance(item, str):
        return text
    if item["type"] == "tool_call":
        return {"type": "tool_call", "index": item["index"], "arguments_delta": text}
    return {**item, "delta": text}


def _canonical(event: Mapping[str, Any]) -> str:
    return orjson.dumps(orjson.loads(encode_object(event)), option=orjson.OPT_SORT_KEYS).decode()
