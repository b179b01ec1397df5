"""Which model a generator will ask for a request, as far as it knows before it begins: for metrics, logs and traces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .protocol import Generator


@dataclass(frozen=True, slots=True)
class Asked:
    """A model, and its provider by the name that OpenTelemetry's conventions have for it; None is unknown."""

    model: str | None = None
    provider: str | None = None


NOBODY = Asked()


def asked_by(generator: Generator, given: Any) -> Asked:
    """Return the model that a generator will ask for an input. Of most custom generators that is not known."""
    tell = getattr(generator, "asked_model", None)
    found = tell(given) if callable(tell) else None
    return found if isinstance(found, Asked) else NOBODY
