"""Presets: another name for a generator, with options that override the input of each stream.

`model` is always an option; by default it is the preset's own name. A client's `model` is ignored: some dialects leave
the name of the preset there, and others do not.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from .protocol import GenerationRequest, Generator, Yielded, can_continue, stopper
from .requested_model import RequestedModel, asked_by

# Names for the same thing in different APIs: an option overrides all of them.
_SYNONYMS = (
    frozenset({"max_tokens", "max_completion_tokens", "max_output_tokens"}),
    frozenset({"stop", "stop_sequences"}),
    frozenset({"instructions", "system"}),
    frozenset({"messages", "input"}),
    frozenset({"reasoning", "reasoning_effort"}),
)


class Preset:
    """Runs a generator that others may share. The registry that loaded it closes it."""

    def __init__(self, generator: Generator, name: str, given: Mapping[str, Any]) -> None:
        self.generator = generator
        self._options = {"model": name, **{option: value for option, value in given.items() if option != "generator"}}
        self._overridden = {other for group in _SYNONYMS if group & self._options.keys() for other in group}

    @property
    def continues(self) -> bool:
        """Whether its generator can continue an answer."""
        return can_continue(self.generator)

    @property
    def stop(self) -> Callable[[Any], Awaitable[None]] | None:
        """The `stop` of its generator."""
        return stopper(self.generator)

    def __call__(self, request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        """Run the generator on the input with the options."""
        return self.generator(replace(request, input=self._with_options(request.input)))

    def requested_model(self, given: Any) -> RequestedModel:
        """Return the model that is asked: the generator's own answer, or else the option."""
        found = asked_by(self.generator, self._with_options(given))
        return found if found.model else RequestedModel(str(self._options["model"]), found.provider)

    def _with_options(self, given: Any) -> Any:
        if isinstance(given, Mapping):
            kept = {name: value for name, value in given.items() if name not in self._overridden}
            return {**kept, **self._options}
        return {"messages": given, **self._options} if isinstance(given, str | list) else given
