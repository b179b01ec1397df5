"""A generator that names the model it asks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded
from baton.generators.requested_model import RequestedModel


class Asking:
    """A generator that asks a model and reports its usage; then it waits."""

    def __init__(self) -> None:
        self.asked = 0

    def requested_model(self, given: Any) -> RequestedModel:
        return RequestedModel(given["model"], "openai")

    async def __call__(self, _request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        self.asked += 1
        yield {"type": "usage", "input_tokens": 3, "output_tokens": 4, "cached_tokens": 1, "total_tokens": 7}
