"""One streamed answer of a model provider, translated into our events.

Tool calls are numbered 0, 1, 2 … in the order in which they appear. Usage has the same flat keys for all providers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from .protocol import Yielded


class ProviderAnswer(ABC):
    """Translates one answer. `finish_reason` and `usage` are set when the provider sends them."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.usage: Yielded | None = None
        self.tool_calls = CallNumbers()

    @abstractmethod
    def translate(self, event: Any) -> Iterator[Yielded]:
        """Yield the events of a provider's event; those of an unknown type have none."""


class CallNumbers:
    """Numbers tool calls 0, 1, 2 … in the order in which they appear, whatever a provider's own keys are."""

    def __init__(self) -> None:
        self._index_by_key: dict[Hashable, int] = {}
        self._with_arguments: set[int] = set()
        self.count = 0

    def begin(self, key: Hashable, call_id: str | None, name: str | None, arguments: str = "") -> Yielded:
        """Start the call that the provider will name by `key` from now on."""
        index = self._index_by_key[key] = self.count
        self.count += 1
        if arguments:
            self._with_arguments.add(index)
        call_id = call_id or f"call_{index}"
        return {
            "type": "tool_call",
            "index": index,
            "id": call_id,
            "name": name or "",
            "arguments_delta": arguments,
            "run_by": "client",
        }

    def index_of(self, key: Hashable) -> int | None:
        """Return the number of a call; None if it is unknown."""
        return self._index_by_key.get(key)

    def save(self) -> dict[str, Any]:
        """Return the calls so far as JSON. Their keys must be numbers or texts."""
        return {"indices": list(self._index_by_key.items()), "with_arguments": list(self._with_arguments)}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue after the calls that were saved."""
        self._index_by_key = dict(saved["indices"])
        self._with_arguments = set(saved["with_arguments"])
        self.count = len(self._index_by_key)

    def extend(self, key: Hashable, delta: str | None) -> Iterator[Yielded]:
        """Add a chunk of arguments; that of an unknown call is dropped."""
        index = self._index_by_key.get(key)
        if index is not None and delta:
            self._with_arguments.add(index)
            yield {"type": "tool_call", "index": index, "arguments_delta": delta}

    def complete(self, key: Hashable, arguments: str | None) -> Iterator[Yielded]:
        """Add the whole arguments of a call, unless they came as deltas."""
        if self._index_by_key.get(key) not in self._with_arguments:
            yield from self.extend(key, arguments)


def part(value: Any, *path: str) -> Any:
    """Return a nested field of an SDK's object; None if it is missing. Compatible servers leave out fields."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else getattr(value, name, None)
    return value


def identity(event: Any) -> dict[str, str | None]:
    """Return the answer's id and model from its first event, by OpenTelemetry's names."""
    about = part(event, "message") or part(event, "response") or event
    found = {"gen_ai.response.id": part(about, "id"), "gen_ai.response.model": part(about, "model")}
    return {name: value if isinstance(value, str) else None for name, value in found.items()}


def usage_event(**tokens: int | None) -> dict[str, Any]:
    """Return a usage event with the known counts."""
    return {"type": "usage", **{name: count for name, count in tokens.items() if count is not None}}


def openai_usage(usage: Any, sent: str, made: str) -> dict[str, Any]:
    """Return the usage event of one of OpenAI's APIs, which have different names for the tokens `sent` and `made`."""
    return usage_event(
        input_tokens=part(usage, f"{sent}_tokens"),
        output_tokens=part(usage, f"{made}_tokens"),
        total_tokens=part(usage, "total_tokens"),
        cached_tokens=part(usage, f"{sent}_tokens_details", "cached_tokens"),
        cache_write_tokens=part(usage, f"{sent}_tokens_details", "cache_write_tokens"),
        reasoning_tokens=part(usage, f"{made}_tokens_details", "reasoning_tokens"),
    )
