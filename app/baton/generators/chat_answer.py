"""One answer of the Chat Completions API, as OpenAI's server and the many compatible ones send it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from .chat_calls import ChatCalls
from .done import DONE
from .protocol import Yielded
from .provider_answer import ProviderAnswer, openai_usage, part
from .sdk_errors import reported

_FINISH_REASONS: Final = {
    "function_call": "tool_calls",
    "tool_use": "tool_calls",
    "end_turn": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "complete": "stop",
    "max_tokens": "length",
}


class ChatAnswer(ProviderAnswer):
    """Translates the chunks of one answer.

    Compatible servers differ: reasoning comes as `reasoning_content`, `reasoning` or parts of the content; usage comes
    in any chunk, maybe several times; the finish reason may come twice, or never.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls = ChatCalls(self.tool_calls)
        self._choice = 0  # the number of the one choice that is read
        self._begun = False
        self._counts: dict[str, Any] = {}

    def translate(self, event: Any) -> Iterator[Yielded]:
        """Yield the events of a chunk."""
        if event is DONE:
            # A gateway without an answer may send only this.
            if self._begun:
                yield from self._finish("stop")
            return
        if part(event, "object") == "error":
            raise reported({"code": part(event, "type")})
        if part(event, "x_groq", "error"):
            raise reported({})
        self._count(part(event, "usage") or part(event, "x_groq", "usage"))
        for choice in part(event, "choices") or ():
            yield from self._choose(choice)

    def _choose(self, choice: Any) -> Iterator[Yielded]:
        number = part(choice, "index") or 0
        if not self._begun:
            self._choice = number
        elif number != self._choice:
            return
        self._count(part(choice, "usage"))
        delta = part(choice, "delta")
        if delta is None and not self._begun:
            delta = part(choice, "message")  # from a server that does not stream
        self._begun = True
        yield from self._delta(delta)
        reason = part(choice, "finish_reason")
        if reason == "error":
            raise reported({"code": part(choice, "error", "code")})
        if reason and isinstance(reason, str):
            yield from self._finish(reason)

    def _delta(self, delta: Any) -> Iterator[Yielded]:
        reasoning = part(delta, "reasoning_content") or part(delta, "reasoning")
        if isinstance(reasoning, str) and reasoning:
            yield {"type": "reasoning", "delta": reasoning}
        for content in (part(delta, "content"), part(delta, "refusal")):
            yield from _content(content)
        yield from self._calls.add(part(delta, "tool_calls") or ())
        if called := part(delta, "function_call"):
            yield from self._calls.add_legacy(called)

    def _finish(self, reason: str) -> Iterator[Yielded]:
        """End the answer. A second reason counts only if the first one was `stop`."""
        yield from self._calls.release()
        known = _FINISH_REASONS.get(reason.lower(), reason)
        if self.finish_reason in {None, "stop"}:
            self.finish_reason = "tool_calls" if known == "stop" and self.tool_calls.count else known

    def _count(self, usage: Any) -> None:
        """Keep the counts. They are running totals, and a later chunk may leave some out."""
        if usage:
            self._counts.update(openai_usage(usage, "prompt", "completion"))
            self.usage = self._counts


def _content(content: Any) -> Iterator[Yielded]:
    """Yield the events of a text or a list of parts, some of which may be reasoning."""
    if isinstance(content, str):
        if content:
            yield content
    elif isinstance(content, list):
        for item in content:
            if thought := part(item, "thinking"):
                for text in _content(thought):
                    yield {"type": "reasoning", "delta": text}
            else:
                yield from _content(part(item, "text"))
