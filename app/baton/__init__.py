"""Baton hands a live LLM answer from pod to pod without dropping a token, on Postgres alone.

The public API is what `__all__` names here, in `baton.client`, in `baton.testing`, and in the four adapters of
`baton.adapters`. Everything else may change in any release.

Each name is imported when it is first used: `import baton` loads nothing else, and a worker does not load the server.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from .version import __version__

if TYPE_CHECKING:
    from .app import Application, create_app
    from .client import Client, Follower
    from .db.ended_answers import EndedAnswer
    from .db.enqueueing import enqueue
    from .errors import (
        AnswerFailed,
        BatonError,
        ClientError,
        ConfigurationError,
        FollowError,
        GenerationError,
        ServiceUnavailable,
        StepError,
    )
    from .generators import (
        Approval,
        GenerationRequest,
        Generator,
        SoFar,
        Yielded,
        as_generation_error,
        continues,
        idempotency_key,
    )
    from .generators.conversation import messages
    from .generators.requested_model import RequestedModel
    from .observability.log_context import ContextFilter
    from .observability.log_formatters import json_formatter, text_formatter
    from .principal import Caller
    from .settings import Settings

__all__ = [
    "AnswerFailed",
    "Application",
    "Approval",
    "BatonError",
    "Caller",
    "Client",
    "ClientError",
    "ConfigurationError",
    "ContextFilter",
    "EndedAnswer",
    "FollowError",
    "Follower",
    "GenerationError",
    "GenerationRequest",
    "Generator",
    "RequestedModel",
    "ServiceUnavailable",
    "Settings",
    "SoFar",
    "StepError",
    "Yielded",
    "__version__",
    "as_generation_error",
    "continues",
    "create_app",
    "enqueue",
    "idempotency_key",
    "json_formatter",
    "messages",
    "text_formatter",
]

_MODULES: Final = {
    "AnswerFailed": "errors",
    "Application": "app",
    "Approval": "generators",
    "BatonError": "errors",
    "Caller": "principal",
    "Client": "client",
    "ClientError": "errors",
    "ConfigurationError": "errors",
    "ContextFilter": "observability.log_context",
    "EndedAnswer": "db.ended_answers",
    "FollowError": "errors",
    "Follower": "client",
    "GenerationError": "errors",
    "GenerationRequest": "generators",
    "Generator": "generators",
    "RequestedModel": "generators.requested_model",
    "ServiceUnavailable": "errors",
    "Settings": "settings",
    "SoFar": "generators",
    "StepError": "errors",
    "Yielded": "generators",
    "as_generation_error": "generators",
    "continues": "generators",
    "create_app": "app",
    "enqueue": "db.enqueueing",
    "idempotency_key": "generators",
    "json_formatter": "observability.log_formatters",
    "messages": "generators.conversation",
    "text_formatter": "observability.log_formatters",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
