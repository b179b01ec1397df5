"""The tool calls of one answer of the Chat Completions API, put together from their fragments.

OpenAI's server numbers the calls, and sends each id and name once, whole, in the first fragment. Compatible servers
send ids and names late, in parts, with every fragment, or never. They may give all calls the index 0 or none, and
repeat the whole arguments at the end. So a call is announced when its id, its name and its first arguments have
arrived, or when it is complete. If the index does not show which call a fragment belongs to, the name does, and whether
the arguments so far are complete.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from .protocol import Yielded
from .provider_answer import CallNumbers, part

_LEGACY: Final = "function_call"


@dataclass(frozen=True, slots=True)
class Fragment:
    """The part of a call in one chunk."""

    index: Hashable
    id: str
    name: str
    arguments: str

    @classmethod
    def of(cls, given: Any) -> Fragment:
        """Read an entry of `tool_calls`."""
        called = part(given, "function") or part(given, "custom")
        arguments = part(called, "arguments") or part(called, "input") or ""
        if not isinstance(arguments, str):
            arguments = orjson.dumps(arguments).decode()
        return cls(part(given, "index"), _text(part(given, "id")), _text(part(called, "name")), arguments)

    @classmethod
    def of_legacy(cls, given: Any) -> Fragment:
        """Read a `function_call`, which has no id and comes alone."""
        return cls(_LEGACY, "call_0", _text(part(given, "name")), _text(part(given, "arguments")))


@dataclass(slots=True, eq=False)
class PartialCall:
    """A call, as far as it has arrived."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    announced: bool = False

    @property
    def complete(self) -> bool:
        """Whether its arguments are a JSON object: nothing can follow."""
        try:
            return isinstance(orjson.loads("".join(self.arguments)), dict)
        except ValueError:
            return False


class ChatCalls:
    """The calls of one answer, in the order in which they begin."""

    def __init__(self, numbers: CallNumbers) -> None:
        self._numbers = numbers
        self._calls: list[PartialCall] = []
        self._by_index: dict[Hashable, PartialCall] = {}

    def add(self, entries: Iterable[Any]) -> Iterator[Yielded]:
        """Yield the events of the `tool_calls` of one chunk."""
        seen: set[Hashable] = {None}
        for fragment in map(Fragment.of, entries):
            yield from self._add(fragment, whole=fragment.index in seen)
            seen.add(fragment.index)

    def add_legacy(self, given: Any) -> Iterator[Yielded]:
        """Yield the events of a `function_call`. Some servers send one beside the same `tool_calls`."""
        if not self._calls or _LEGACY in self._by_index:
            yield from self._add(Fragment.of_legacy(given), whole=False)

    def release(self) -> Iterator[Yielded]:
        """Announce the calls that still wait: the answer has ended."""
        for call in self._calls:
            yield from self._announce(call)

    def _add(self, fragment: Fragment, *, whole: bool) -> Iterator[Yielded]:
        call = self._named(fragment)
        if call is None or _begins(fragment, call, whole=whole):
            if call is not None:
                yield from self._announce_until(call)
            call = self._by_index[fragment.index] = PartialCall()
            self._calls.append(call)
        yield from self._extend(call, fragment)

    def _named(self, fragment: Fragment) -> PartialCall | None:
        """Return the call that has a fragment's index; without one, the call with its id, or the last one."""
        if fragment.index is not None:
            return self._by_index.get(fragment.index)
        last = self._by_index.get(None)
        return next((call for call in self._calls if fragment.id and call.id == fragment.id), last)

    def _extend(self, call: PartialCall, fragment: Fragment) -> Iterator[Yielded]:
        arguments = fragment.arguments
        if len(arguments) > 1 and arguments.startswith("{") and arguments == "".join(call.arguments):
            arguments = ""  # the whole arguments, repeated
        if arguments:
            call.arguments.append(arguments)
        if call.announced:
            yield from self._numbers.extend(call, arguments)
            return
        call.id = call.id or fragment.id
        # A name may be repeated in every fragment, too.
        call.name = fragment.name if fragment.name.startswith(call.name) else call.name + fragment.name
        if call.id and call.name and call.arguments:
            yield from self._announce_until(call)

    def _announce_until(self, call: PartialCall) -> Iterator[Yielded]:
        """Announce a call, after all calls before it: calls are numbered in their order."""
        for each in self._calls[: self._calls.index(call) + 1]:
            yield from self._announce(each)

    def _announce(self, call: PartialCall) -> Iterator[Yielded]:
        if not call.announced:
            call.announced = True
            yield self._numbers.begin(call, call.id, call.name, "".join(call.arguments))


def _begins(fragment: Fragment, call: PartialCall, *, whole: bool) -> bool:
    """Whether a fragment begins a new call, and does not belong to the one that has its index.

    `whole` says that the index is useless: it is missing, or there twice in one chunk.
    """
    if not fragment.name or (fragment.id and fragment.id == call.id):
        return False
    if whole:
        return True
    if fragment.id and call.id:
        # Some servers give each fragment a new id.
        return fragment.name != call.name or not call.arguments or call.complete
    return call.complete and (fragment.name != call.name or bool(fragment.arguments))


def _text(value: Any) -> str:
    return "" if value is None else str(value)
