"""Which model a generator will ask for a request, as far as it knows before it begins: for metrics, logs and traces."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Final

from .protocol import Generator

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """A model, and its provider by the name that OpenTelemetry's conventions have for it; None is unknown."""

    model: str | None = None
    provider: str | None = None


NOBODY: Final = Asked()


def asked_by(generator: Generator, given: Any) -> Asked:
    """Return the model that a generator will ask for an input. Of most custom generators that is not known.

    A custom generator's own method that fails harms only its labels: the stream runs.
    """
    ask = getattr(generator, "asked_model", None)
    try:
        found = ask(given) if callable(ask) else None
    except Exception:
        logger.exception("The generator's asked_model() failed, so the stream's model is unknown.")
        return NOBODY
    return Asked(_name(found.model), _name(found.provider)) if isinstance(found, Asked) else NOBODY


def _name(given: object) -> str | None:
    """Return a name. What a client has put in its place may be anything."""
    return given if isinstance(given, str) else None
