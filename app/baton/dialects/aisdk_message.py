"""The assistant's message that a stream continues, as the AI SDK's page sent it, and its parts as chunks.

A client that has the message gets only what is new: the SDK would show repeated parts twice. A client that replays the
stream gets the parts first. An answered tool call is replayed as the start of its input, the input as one delta, and
its outcome: with `tool-input-available` the page would run the tool again. An answered approval is replayed without its
question: AI SDK 6 would show the buttons again.

All values here are immutable. The parts come from a page: only their types and ids are checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import orjson

from ..errors import GenerationError

Fields = dict[str, Any]

# Parts that are chunks of their own, field for field.
_WHOLE: Final = frozenset({"file", "reasoning-file", "custom", "source-url", "source-document", "steering-message"})
_ANSWERED: Final = frozenset({"output-available", "output-error", "output-denied"})


@dataclass(frozen=True, slots=True, eq=False)
class Earlier:
    """A message that a stream continues."""

    id: str
    parts: Sequence[Fields]
    metadata: Mapping[str, Any]

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Self:
        """Read a stored message.

        Raises:
            GenerationError: a part cannot be replayed.
        """
        metadata = message.get("metadata")
        earlier = cls(message["id"], message["parts"], metadata if isinstance(metadata, dict) else {})
        try:
            list(earlier.chunks())
        except (AttributeError, KeyError, TypeError) as error:
            raise GenerationError("invalid_input", "The last message is malformed: a part lacks a field.") from error
        return earlier

    @property
    def prose(self) -> int:
        """The number of its parts of text and reasoning. New ones are numbered after them."""
        return sum(1 for part in self.parts if part["type"] in {"text", "reasoning"})

    @property
    def answered(self) -> frozenset[str]:
        """The ids of the tool calls that have an outcome."""
        return frozenset(part["toolCallId"] for part in self._tools() if part.get("state") in _ANSWERED)

    @property
    def unanswered(self) -> Mapping[str, str]:
        """The names of the tools whose calls have no outcome yet, by the ids of the calls."""
        return {part["toolCallId"]: tool_name(part) for part in self._tools() if part.get("state") not in _ANSWERED}

    def metadata_with(self, new: Fields, *, whole: bool) -> Fields:
        """Return metadata for `start`: the message is growing again, so it has no status."""
        reset = {"status": None} if "status" in self.metadata else {}
        return {**(self.metadata if whole else {}), **reset, **new}

    def chunks(self) -> Iterator[Fields]:
        """Yield the chunks that replay all parts."""
        for number, part in enumerate(self.parts, 1):
            kind = part["type"]
            if kind == "step-start":
                yield {"type": "start-step"}
            elif kind in {"text", "reasoning"}:
                yield from _prose(part, number)
            elif is_tool(part):
                yield from _tool(part)
            elif kind in _WHOLE or kind.startswith("data-"):
                yield dict(part)
            else:
                raise GenerationError(
                    "invalid_input", f"A message with a part of the type {kind!r:.80} cannot be continued."
                )

    def denials(self) -> Iterator[Fields]:
        """Yield the chunks for parts that have just changed: calls that the user has refused."""
        for part in self._tools():
            if _is_denied(part):
                yield {"type": "tool-output-denied", "toolCallId": part["toolCallId"]}

    def _tools(self) -> Iterator[Fields]:
        return (part for part in self.parts if is_tool(part))


def is_tool(part: Mapping[str, Any]) -> bool:
    """Whether a part is a tool call."""
    kind = str(part.get("type"))
    return kind == "dynamic-tool" or kind.startswith("tool-")


def tool_name(part: Mapping[str, Any]) -> str:
    """Return the name of the tool that a part calls."""
    return str(part["toolName"] if part["type"] == "dynamic-tool" else part["type"].removeprefix("tool-"))


def _prose(part: Fields, number: int) -> Iterator[Fields]:
    kind = part["type"]
    named = {"id": part["id"] if isinstance(part.get("id"), str) else f"earlier-{number}"}
    yield {"type": f"{kind}-start", **named, **_copied(part, "providerMetadata")}
    if part["text"]:
        yield {"type": f"{kind}-delta", **named, "delta": part["text"]}
    yield {"type": f"{kind}-end", **named, **_copied(part, "citations")}


def _tool(part: Fields) -> Iterator[Fields]:
    dynamic = {"dynamic": True} if part["type"] == "dynamic-tool" else {}
    named = {"toolCallId": part["toolCallId"], **dynamic, **_copied(part, "providerExecuted")}
    about = _copied(part, "title", "toolMetadata")
    if "callProviderMetadata" in part:
        about["providerMetadata"] = part["callProviderMetadata"]
    if part.get("state") == "input-available" and not part.get("providerExecuted"):
        # It has no result yet: the page must run the tool.
        call = {"toolName": tool_name(part), "input": part.get("input")}
        yield {"type": "tool-input-available", **named, **call, **about}
        return
    yield {"type": "tool-input-start", **named, "toolName": tool_name(part), **about}
    if (arguments := _arguments(part)) is not None:
        yield {"type": "tool-input-delta", "toolCallId": part["toolCallId"], "inputTextDelta": arguments}
    yield from _outcome(part, named)


def _outcome(part: Fields, named: Fields) -> Iterator[Fields]:
    state = part.get("state")
    if state == "output-available":
        output = {"output": part.get("output"), **_copied(part, "preliminary")}
        yield {"type": "tool-output-available", **named, **output}
    elif state == "output-error":
        yield {"type": "tool-output-error", **named, "errorText": part.get("errorText") or ""}
    elif state == "output-denied" or _is_denied(part):
        yield {"type": "tool-output-denied", "toolCallId": part["toolCallId"]}
    elif state == "approval-requested":
        approval = {"approvalId": part["approval"]["id"], "toolCallId": part["toolCallId"]}
        yield {"type": "tool-approval-request", **approval}


def _is_denied(part: Fields) -> bool:
    return part.get("state") == "approval-responded" and part["approval"].get("approved") is not True


def _arguments(part: Fields) -> str | None:
    """Return the input as the SDK read it: as JSON, or unchanged if it is not JSON."""
    value = part.get("input")
    if value is None:
        raw = part.get("rawInput")
        return raw if isinstance(raw, str) else None
    if part.get("state") == "output-error" and isinstance(value, str):
        return value
    return orjson.dumps(value).decode()


def _copied(part: Fields, *names: str) -> Fields:
    return {name: part[name] for name in names if part.get(name) is not None}
