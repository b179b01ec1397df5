"""How processes log: one line for each record, whatever it holds, of whichever library.

Baton's modules, like most libraries, use the standard library's loggers, and give what programs shall find as `extra`;
structlog renders it. So an application that Baton is mounted in gets all of it in its own way.

What comes from outside (paths, names, a provider's sentences) reaches the log as part of messages. So control
characters, which could begin a new line or tell a terminal what to do, are escaped here, for all loggers at once.
"""

from __future__ import annotations

import datetime
import logging
import re
import sys
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, Final, TypeAlias

import orjson
import structlog
from rich.console import Console
from structlog.stdlib import ExtraAdder, ProcessorFormatter

from ..events import without_surrogates
from ..settings import LogFormat, LogLevel
from .log_context import FIELDS, NOBODYS, ContextFilter

EventDict: TypeAlias = MutableMapping[str, Any]

logger = logging.getLogger(__name__)

# C0, DEL and C1; what else ends a line or turns the direction of writing; lone surrogates, which no stream can write.
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# They log each request that they make. Some of their addresses may hold a key.
_CHATTY: Final = ("alembic", "httpx", "httpx2")
# The message again, with uvicorn's colours, and what structlog's own loggers leave on a record.
_NOT_FIELDS: Final = ("color_message", "_logger", "_name", "_record", "_from_structlog")


def escaped(text: str) -> str:
    r"""Write control characters as `\n`, `\x1b` or `\u2028`."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def json_formatter(*, project: str | None = None, **process: str) -> logging.Formatter:
    """Return what makes one JSON object of each record, with the fields that Google's Cloud Logging reads.

    `project`: the Google Cloud project that traces are in. `process`: what each line says of the process.
    """
    return _formatter(_Json(project, process))


def text_formatter(*, colors: bool = False, lines: bool = False) -> logging.Formatter:
    """Return what makes one line for people of each record; with `lines`, for terminals, tracebacks keep theirs."""
    render = structlog.dev.ConsoleRenderer(
        colors=colors,
        force_colors=colors,
        sort_keys=False,
        pad_event_to=0,
        exception_formatter=structlog.dev.plain_traceback,
    )
    return _formatter(_Text(lines), render)


def configure(
    terminal: Console,
    *,
    form: LogFormat = "auto",
    level: LogLevel = "info",
    project: str | None = None,
    **process: str,
) -> None:
    """Have this process log to standard error: for people, if that is a terminal, else for whatever collects logs.

    `level` is that of Baton itself. Libraries log no details, which may hold prompts and keys.
    """
    at_terminal = sys.stderr.isatty()
    handler = logging.StreamHandler(terminal.file)
    if form == "json" or (form == "auto" and not at_terminal):
        handler.setFormatter(json_formatter(project=project, **process))
    else:
        colors = at_terminal and terminal.color_system is not None
        handler.setFormatter(text_formatter(colors=colors, lines=at_terminal))
    handler.addFilter(ContextFilter())
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(number, logging.INFO), handlers=[handler], force=True)
    logging.getLogger("baton").setLevel(number)
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    _adopt_structlog()


def _adopt_structlog() -> None:
    """Have the loggers of generators that use structlog log as all others do, unless they configure it themselves."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.PositionalArgumentsFormatter(),
            ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, Exception):
        logger.critical("The process ends by an error that nobody expected.", exc_info=(kind, error, trace))
    else:
        sys.__excepthook__(kind, error, trace)


def _formatter(*renderers: Any) -> logging.Formatter:
    return ProcessorFormatter(processors=[ExtraAdder(), structlog.processors.format_exc_info, *renderers])


class _Json:
    """Renders a record as a JSON object."""

    def __init__(self, project: str | None, process: dict[str, str]) -> None:
        self._project = project
        self._process = process

    def __call__(self, _logger: Any, _method: str, event: EventDict) -> str:
        record: logging.LogRecord = event["_record"]
        line: dict[str, Any] = {
            "severity": _severity(record.levelno),
            "message": event.pop("event"),
            "time": _time(record).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "logger": record.name,
            **self._process,
        }
        if trace := event.pop("exception", None):
            line["stack_trace"] = trace  # where Cloud Error Reporting looks for it
        _drop_what_is_not_said(event)
        if self._project is not None and {"trace_id", "span_id", "trace_sampled"} <= event.keys():
            line["logging.googleapis.com/trace"] = f"projects/{self._project}/traces/{event.pop('trace_id')}"
            line["logging.googleapis.com/spanId"] = event.pop("span_id")
            line["logging.googleapis.com/trace_sampled"] = event.pop("trace_sampled")
        # Nobody's field takes the place of one of these.
        return _json({**event, **line} if event.keys() & line.keys() else line | dict(event))


class _Text:
    """Prepares a record for structlog's own renderer for people."""

    def __init__(self, lines: bool) -> None:
        self._lines = lines

    def __call__(self, _logger: Any, _method: str, event: EventDict) -> EventDict:
        record: logging.LogRecord = event["_record"]
        message, trace = escaped(str(event.pop("event"))), event.pop("exception", None)
        _drop_what_is_not_said(event)
        if "stream_id" in event and str(event["stream_id"]) in message:
            del event["stream_id"]
        event.pop("trace_sampled", None)
        line: dict[str, Any] = {
            "timestamp": _time(record).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
            "level": record.levelname.lower(),
            "event": message,
            "logger": escaped(record.name),
        }
        line |= {escaped(name): _value(value) for name, value in event.items() if name not in line}
        if trace and self._lines:
            line["exception"] = "\n".join(map(escaped, trace.split("\n")))
        elif trace:
            line["event"] += escaped("\n" + trace)
        return line


def _drop_what_is_not_said(event: EventDict) -> None:
    for name, value in list(event.items()):
        nobodys = name in FIELDS and value == NOBODYS
        if value is None or value == "" or nobodys or name in _NOT_FIELDS:
            del event[name]
    if "trace_id" not in event:
        event.pop("trace_sampled", None)


def _value(value: object) -> object:
    return value if isinstance(value, bool | int | float | None) else escaped(str(value))


def _severity(level: int) -> str:
    """The severity as Cloud Logging knows it; it has none between those of the standard library."""
    for least in (logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO):
        if level >= least:
            return logging.getLevelName(least)
    return "DEBUG"


def _time(record: logging.LogRecord) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(record.created, datetime.UTC)


def _json(line: dict[str, Any]) -> str:
    """Write it so that reading it gives back each character, and none of them does anything on the way."""
    try:
        encoded = orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:
        # A lone surrogate, a number that is too large, a circle: things that JSON, or orjson, has no words for.
        plain = {without_surrogates(name): _plain(value) for name, value in line.items()}
        encoded = orjson.dumps(plain)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", encoded.decode())


def _plain(value: object) -> object:
    return value if isinstance(value, bool | float | None) else without_surrogates(str(value))
