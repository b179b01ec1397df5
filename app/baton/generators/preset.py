"""Presets: another name for a generator, with options that override the input of each stream.

`model` is always an option; by default it is the preset's own name. A client's `model` is ignored: some dialects leave
the name of the preset there, and others do not.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from .. import model_entries
from . import attempts
from .attempts import Candidate
from .concurrency import Concurrency
from .protocol import GenerationRequest, Generator, Yielded, can_continue, stopper
from .provider import Provider
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
    """Runs a generator that others may share. The registry that loaded it closes it.

    `fallback` has the presets that are asked in order if this one's model does not answer: for providers only.
    """

    def __init__(
        self, generator: Generator, name: str, entry: Mapping[str, Any], fallback: Sequence[Preset] = ()
    ) -> None:
        self.generator = generator
        self.name = name
        self.concurrency = Concurrency(entry.get("max_concurrency"))
        self.fallback = fallback
        self._options = {"model": name, **model_entries.options(entry)}
        self._overridden = {other for group in _SYNONYMS if group & self._options.keys() for other in group}

    @property
    def continues(self) -> bool:
        """Whether its generator, or one that it falls back on, can continue an answer."""
        return any(can_continue(part) for part in self.parts)

    @property
    def stop(self) -> Callable[[Any], Awaitable[None]] | None:
        """The `stop` of its generators, each of which knows its own states; None if none has one."""
        stops = [stop for part in self.parts if (stop := stopper(part)) is not None]
        if not stops:
            return None

        async def stop_all(state: Any) -> None:
            for stop in stops:
                await stop(state)

        return stop_all

    def __call__(self, request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        """Run the generator on the input with the options."""
        if isinstance(self.generator, Provider):
            presets = sorted((self, *self.fallback), key=lambda preset: not preset.knows(request.state))
            candidates = [preset.as_candidate(request) for preset in presets]
            return attempts.answer(candidates, self.generator.patience)
        if self.concurrency.most is not None:
            return self._limited(request)
        return self.generator(self._own(request))

    @property
    def parts(self) -> list[Generator]:
        """The generators that this runs."""
        return [self.generator, *(preset.generator for preset in self.fallback)]

    def knows(self, state: Any) -> bool:
        """Whether this preset's provider began what a state stands for, and so is asked first."""
        return isinstance(self.generator, Provider) and self.generator.knows(state)

    def as_candidate(self, request: GenerationRequest) -> Candidate:
        """Return this preset of a provider as a model that may answer a request."""
        assert isinstance(self.generator, Provider)
        asked = self.requested_model(request.input)
        return Candidate(self.name, asked, self.generator.ask, self._own(request), self.concurrency)

    def requested_model(self, given: Any) -> RequestedModel:
        """Return the model that is asked first: the generator's own answer, or else the option."""
        found = asked_by(self.generator, self._with_options(given))
        return found if found.model else RequestedModel(str(self._options["model"]), found.provider)

    async def _limited(self, request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        async with self.concurrency.place(), aclosing(self.generator(self._own(request))) as events:
            async for item in events:
                yield item

    def _own(self, request: GenerationRequest) -> GenerationRequest:
        return replace(request, input=self._with_options(request.input))

    def _with_options(self, given: Any) -> Any:
        if isinstance(given, Mapping):
            kept = {name: value for name, value in given.items() if name not in self._overridden}
            return {**kept, **self._options}
        return {"messages": given, **self._options} if isinstance(given, str | list) else given


def concurrency_of(generator: Generator) -> Concurrency:
    """Return the limit of a generator: without one if it is no preset."""
    return generator.concurrency if isinstance(generator, Preset) else Concurrency()
