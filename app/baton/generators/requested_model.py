"""The model that a generator will ask, if that is known before it begins: for metrics, logs and traces."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Final

from ..events import without_surrogates
from .protocol import Generator

logger = logging.getLogger(__name__)

# Clients may name any model, and the name is in each log line and span of the stream.
_LONGEST_NAME: Final = 256


@dataclass(frozen=True, slots=True)
class RequestedModel:
    """A model, and its provider's name in OpenTelemetry's conventions; None means unknown."""

    model: str | None = None
    provider: str | None = None


NOBODY: Final = RequestedModel()


def asked_by(generator: Generator, given: Any) -> RequestedModel:
    """Return the model that a generator will ask for an input. For most custom generators it is unknown.

    It never fails: if the input is invalid, the generator itself refuses it.
    """
    ask = getattr(generator, "requested_model", None)
    if not callable(ask):
        return NOBODY
    try:
        found = ask(given)
    except Exception:
        logger.warning("`requested_model` of the generator %.80r failed.", type(generator).__qualname__, exc_info=True)
        return NOBODY
    return RequestedModel(_name(found.model), _name(found.provider)) if isinstance(found, RequestedModel) else NOBODY


def _name(given: object) -> str | None:
    return without_surrogates(given[:_LONGEST_NAME]) if isinstance(given, str) else None
