r"""Characters that a generator yields as two surrogates in two events.

JSON writes a character outside of the Basic Multilingual Plane as two surrogates, and some providers end a chunk
between them: `"\ud83d"`, then `"\ude00"`. UTF-8 cannot hold one surrogate, so the high one waits here for the low one.
A high surrogate that stays alone becomes U+FFFD where its text, reasoning or tool call ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..generators import Yielded
from .tool_calls import ToolCalls

_FIRST_HIGH: Final = "\ud800"
_LAST_HIGH: Final = "\udbff"
_REPLACEMENT: Final = "\ufffd"
_RESULTS: Final = ("tool_result", "tool_approval")  # a tuple, since the type of an invalid event may not be hashable

# Where deltas are joined: the text, the reasoning, or the arguments of the tool call with this index.
Channel = str | int


class SurrogateJoiner:
    """Joins the surrogate pairs of one generator. It is called for every event, and does little for most.

    It reads `calls`, into which the caller notes each event after it was joined.
    """

    __slots__ = ("_calls", "_held")

    def __init__(self, calls: ToolCalls) -> None:
        self._held: dict[Channel, str] = {}
        self._calls = calls

    @property
    def holds(self) -> bool:
        """Whether half a character waits for its other half."""
        return bool(self._held)

    def join(self, item: Yielded) -> Sequence[Yielded]:
        """Return the events that can be written now that the generator has yielded this one."""
        if isinstance(item, str) and not self._held and (item.isascii() or not _ends_high(item)):
            return (item,)
        channel, delta = _streamed(item)
        begins = isinstance(channel, int) and self._calls.begins(item)  # type: ignore[arg-type]
        if isinstance(channel, int) and not begins and channel not in self._calls:
            return (item,)  # of no call: the caller refuses it
        if not self._held and not _ends_high(delta):
            return (item,)
        given_up = self._ended_by(item, channel, delta, begins=begins)
        if channel is None:
            return (*given_up, item)
        whole = self._held.pop(channel, "") + delta
        if _ends_high(whole):
            self._held[channel], whole = whole[-1], whole[:-1]
        if not whole and not begins:
            return given_up
        return (*given_up, _with_delta(item, whole))

    def rest(self) -> Sequence[Yielded]:
        """Return an event for each surrogate that still waits: the generator has ended."""
        return [self._give_up(channel) for channel in list(self._held)]

    def _ended_by(self, item: Any, channel: Channel | None, delta: str, *, begins: bool) -> Sequence[Yielded]:
        """Give up the surrogates of channels that this event ends."""
        ended: list[Channel] = []
        if isinstance(channel, str):
            if delta:
                ended = ["reasoning" if channel == "text" else "text"]
        elif channel is not None:
            ended = ["text", "reasoning", channel] if begins else []
        elif isinstance(item, Mapping) and item.get("type") in _RESULTS:
            ended = ["text", "reasoning", *self._calls.indexes_of(item.get("id"))]
        return [self._give_up(channel) for channel in ended if channel in self._held]

    def _give_up(self, channel: Channel) -> Yielded:
        del self._held[channel]
        if isinstance(channel, int):
            return {"type": "tool_call", "index": channel, "arguments_delta": _REPLACEMENT}
        return {"type": channel, "delta": _REPLACEMENT}


def _streamed(item: Any) -> tuple[Channel | None, str]:
    """Return the channel and the delta of an event that has both. Invalid events are not refused here."""
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


def _ends_high(text: str) -> bool:
    return _FIRST_HIGH <= text[-1:] <= _LAST_HIGH


def _with_delta(item: Any, delta: str) -> Yielded:
    if isinstance(item, str):
        return delta
    return {**item, "arguments_delta" if item["type"] == "tool_call" else "delta": delta}
