"""One answer of the Responses API that a later run can continue to read, with what it needs to know for that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Final

from .openai import CALLS, ResponsesAnswer, content_of
from .protocol import Yielded
from .provider_answer import part
from .sdk_errors import reported

# The kinds of places in an output item, by the types of their events.
_TEXT: Final = "response.output_text"
_REFUSAL: Final = "response.refusal"
_THOUGHT: Final = "response.reasoning_text"
_SUMMARY: Final = "response.reasoning_summary_text"
_SUMMARY_BREAK: Final = "response.reasoning_summary_part"
_ITEM: Final = "response.output_item"


class ResumableAnswer(ResponsesAnswer):
    """Translates the events of one answer, and counts the characters of each text that it has yielded."""

    def __init__(self) -> None:
        super().__init__()
        self._yielded: Counter[Hashable] = Counter()

    def translate(self, event: Any) -> Iterator[Yielded]:
        """Yield the events of a provider's event."""
        for item in super().translate(event):
            if isinstance(item, str):
                self._yielded[content_of(event)] += len(item)
            elif item["type"] == "reasoning":
                self._yielded[content_of(event)] += len(item["delta"])
            elif item["type"] == "tool_call":
                self._yielded[_call(item["index"])] += len(item["arguments_delta"])
            yield item

    def save(self) -> dict[str, Any]:
        """Return as JSON what a later run must know of the events that this one has translated."""
        return {
            "begun": list(self._begun),
            "calls": self.tool_calls.save(),
            "yielded": list(self._yielded.items()),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue after the events of an earlier run that saved this."""
        self._begun = {_key(key) for key in saved["begun"]}
        self.tool_calls.restore(saved["calls"])
        self._yielded = Counter({_key(key): count for key, count in saved["yielded"]})

    def rest(self, response: Any) -> Iterator[Yielded]:
        """Yield what is missing of a Response that is over, and how it ended."""
        for index, item in enumerate(part(response, "output") or ()):
            if part(item, "type") in CALLS:
                yield from self._rest_of_call(index, item)
            elif not self._yielded[_ITEM, index, None]:  # otherwise it came whole
                yield from self._rest_of_item(index, item)
            self._begun.add(index)
        status = part(response, "status")
        event = SimpleNamespace(type=f"response.{status}", response=response)
        if status == "cancelled":
            raise reported({"code": "cancelled"})
        yield from self._failed(event) if status == "failed" else self._end(event)

    def _rest_of_call(self, index: int, item: Any) -> Iterator[Yielded]:
        arguments = part(item, "arguments") or part(item, "input") or ""
        if index not in self._begun:
            yield self._begin_call(index, item)
        elif (number := self.tool_calls.index_of(index)) is not None:
            yield from self.tool_calls.extend(index, arguments[self._yielded[_call(number)] :])

    def _rest_of_item(self, index: int, item: Any) -> Iterator[Yielded]:
        for place, summary in enumerate(part(item, "summary") or ()):
            if place and not self._yielded[_SUMMARY_BREAK, index, place]:
                yield {"type": "reasoning", "delta": "\n\n"}
            for text in self._rest_of((_SUMMARY, index, place), part(summary, "text") or ""):
                yield {"type": "reasoning", "delta": text}
        for text in self._rest_of((_THOUGHT, index, None), _joined(item, "reasoning_text", "text")):
            yield {"type": "reasoning", "delta": text}
        yield from self._rest_of((_TEXT, index, None), _joined(item, "output_text", "text"))
        yield from self._rest_of((_REFUSAL, index, None), _joined(item, "refusal", "refusal"))

    def _rest_of(self, key: Hashable, whole: str) -> Iterator[str]:
        if rest := whole[self._yielded[key] :]:
            yield rest


def _joined(item: Any, kind: str, field: str) -> str:
    """Return all texts of one kind in an output item."""
    contents = (content for content in part(item, "content") or () if part(content, "type") == kind)
    return "".join(part(content, field) or "" for content in contents)


def _call(number: int) -> Hashable:
    return "call", number


def _key(saved: Any) -> Hashable:
    """Return a key as it was before it became JSON."""
    return tuple(saved) if isinstance(saved, list) else saved
