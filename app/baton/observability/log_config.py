"""Configures how a process of Baton logs: to standard error, a line for each record, uncaught errors included."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, Final

from rich.console import Console

from ..settings import LogFormat, LogLevel
from .log_context import ContextFilter
from .log_formatters import STRUCTLOG_FIELDS, json_formatter, text_formatter

try:
    import structlog
except ModuleNotFoundError:
    HAS_STRUCTLOG = False
else:
    HAS_STRUCTLOG = True

logger = logging.getLogger(__name__)

# They log each request that they make, and some of the addresses may hold a key.
_CHATTY: Final = ("alembic", "httpx", "httpx2")
# The arguments that structlog passes unchanged to the logger of the standard library.
_LOGGER_ARGUMENTS: Final = ("exc_info", "stack_info", "stacklevel")


def configure(
    terminal: Console,
    *,
    form: LogFormat = "auto",
    level: LogLevel = "info",
    project: str | None = None,
    **process: str,
) -> None:
    """Log to standard error: text if that is a terminal, else JSON, unless `form` is one of the two.

    `level` applies to Baton's own loggers. Libraries log nothing below INFO: their details may hold prompts and keys.
    """
    at_terminal = sys.stderr.isatty()
    handler = logging.StreamHandler(terminal.file)
    if form == "json" or (form == "auto" and not at_terminal):
        handler.setFormatter(json_formatter(project=project, **process))
    else:
        colors = at_terminal and terminal.color_system is not None
        # A terminal shows one command. Only if that has several processes, each line says which.
        number = {name: process[name] for name in ("process",) if name in process}
        handler.setFormatter(text_formatter(colors=colors, lines=at_terminal, process=number))
    handler.addFilter(ContextFilter())
    least = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(least, logging.INFO), handlers=[handler], force=True)
    logging.getLogger("baton").setLevel(least)
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    if HAS_STRUCTLOG:
        _adopt_structlog()


def _adopt_structlog() -> None:
    """Send what generators log by structlog through the standard library, unless they configure structlog themselves.

    By default structlog prints to standard output.
    """
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.PositionalArgumentsFormatter(),
            _logger_arguments,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def _logger_arguments(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    """Turn structlog's event into the arguments of a logger of the standard library."""
    arguments = {name: event.pop(name) for name in _LOGGER_ARGUMENTS if name in event}
    return {"msg": event.pop("event", ""), "extra": {STRUCTLOG_FIELDS: event}, **arguments}


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, Exception):
        logger.critical("The process ends because of an unexpected error.", exc_info=(kind, error, trace))
    else:
        sys.__excepthook__(kind, error, trace)
