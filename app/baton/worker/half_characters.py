r"""Characters that a generator yields in two halves.

JSON writes a character outside of the Basic Multilingual Plane as two surrogates, and some providers end a chunk
between them: `"\ud83d"`, then `"\ude00"`. No UTF-8 can hold one alone, so the first half waits here for the second.
One that stays alone becomes U+FFFD, where its text, reasoning or tool call ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..events import begins_call
from ..generators import Yielded

_FIRST: Final = "\ud800"
_LAST: Final = "\udbff"
_ALONE: Final = "\ufffd"
_RESULTS: Final = ("tool_result", "tool_approval")  # a tuple, which takes what has no hash, too

# Where deltas are joined: the text, the reasoning, or the arguments of the call with this index.
Channel = str | int


class Halves:
    """The halves that wait, of one generator. It is called for every event, and does little for most."""

    __slots__ = ("_call_ids", "_held")

    def __init__(self) -> None:
        self._held: dict[Channel, str] = {}
        self._call_ids: dict[int, str] = {}

    def join(self, item: Yielded) -> Sequence[Yielded]:
        """Return the events that can be written now that a generator has yielded this one."""
        if isinstance(item, str) and not self._held and (item.isascii() or not _ends_in_half(item)):
            return (item,)
        channel, delta = _streamed(item)
        begins = isinstance(channel, int) and self._begins(item)
        if isinstance(channel, int) and channel not in self._call_ids:
            return (item,)  # of no call, which is refused
        if not self._held and not _ends_in_half(delta):
            return (item,)
        alone = self._left_alone(item, channel, delta, begins=begins)
        if channel is None:
            return (*alone, item)
        whole = self._held.pop(channel, "") + delta
        if _ends_in_half(whole):
            self._held[channel], whole = whole[-1], whole[:-1]
        if not whole and not begins:
            return alone
        return (*alone, _with_delta(item, whole))

    def rest(self) -> Sequence[Yielded]:
        """Return an event for each half that still waits: the stream has come to its end."""
        return [self._give_up(channel) for channel in list(self._held)]

    def _begins(self, item: Any) -> bool:
        """Whether an event begins a tool call."""
        index, call_id = item["index"], item.get("id")
        known = self._call_ids.get(index)
        if not isinstance(call_id, str) or not call_id:
            return False
        self._call_ids[index] = call_id
        return known is None or begins_call(item, known)

    def _left_alone(self, item: Any, channel: Channel | None, delta: str, *, begins: bool) -> Sequence[Yielded]:
        """Give up the halves in parts that this event ends."""
        ended: list[Channel] = []
        if isinstance(channel, str):
            if delta:
                ended = ["reasoning" if channel == "text" else "text"]
        elif channel is not None:
            ended = ["text", "reasoning", channel] if begins else []
        elif isinstance(item, Mapping) and item.get("type") in _RESULTS:
            calls = [index for index, call_id in self._call_ids.items() if call_id == item.get("id")]
            ended = ["text", "reasoning", *calls]
        return [self._give_up(channel) for channel in ended if channel in self._held]

    def _give_up(self, channel: Channel) -> Yielded:
        del self._held[channel]
        if isinstance(channel, int):
            return {"type": "tool_call", "index": channel, "arguments_delta": _ALONE}
        return {"type": channel, "delta": _ALONE}


def _streamed(item: Any) -> tuple[Channel | None, str]:
    """Return the channel of an event that has a delta, and that; what is no such event is not judged here."""
    if isinstance(item, str):
        return "text", item
    if not isinstance(item, Mapping):
        return None, ""
    channel: Any = None
    delta: Any = ""
    match item.get("type"):
        case "text" | "reasoning" as channel:
            delta = item.get("delta")
        case "tool_call" if isinstance(item.get("index"), int):
            channel, delta = item["index"], item.get("arguments_delta") or ""
    return (channel, delta) if isinstance(delta, str) else (None, "")


def _ends_in_half(text: str) -> bool:
    return _FIRST <= text[-1:] <= _LAST


def _with_delta(item: Any, delta: str) -> Yielded:
    if isinstance(item, str):
        return delta
    return {**item, "arguments_delta" if item["type"] == "tool_call" else "delta": delta}
