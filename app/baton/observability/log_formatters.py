"""Formats each log record as one line, whatever it holds and whichever library logs it: JSON, or text for people.

Baton's modules, like most libraries, use the standard library's loggers and pass what programs look for as `extra`. So
an application that mounts Baton can render those fields in its own way.

Messages contain text from outside (paths, names, a provider's sentences). So control characters, which could start a
new line or control a terminal, are escaped here, for all loggers at once.
"""

from __future__ import annotations

import datetime
import logging
import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from ..events import without_surrogates
from .log_context import FIELDS, NOBODYS

# The attribute of a record that holds the fields of a structlog logger. They may have any name, even that of a record's
# own attribute, which `extra` does not accept.
STRUCTLOG_FIELDS: Final = "_structlog_fields"

# C0, DEL and C1; other characters that end a line or change the writing direction; lone surrogates, which no stream
# can encode.
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# A record's own attributes, those that formatters add, and uvicorn's copy of the message with colors.
_NOT_FIELDS: Final = frozenset(
    {*logging.LogRecord("", 0, "", 0, "", (), None).__dict__, "message", "asctime", "color_message", STRUCTLOG_FIELDS}
)
_QUOTED: Final = re.compile("[ \t='\"]")

_RESET: Final = "\x1b[0m"
_DIM: Final = "\x1b[2m"
_BOLD: Final = "\x1b[1m"
_CYAN: Final = "\x1b[36m"
_MAGENTA: Final = "\x1b[35m"
_BOLD_BLUE: Final = "\x1b[1m\x1b[34m"
_LEVEL_STYLES: Final = {
    "debug": "\x1b[32m\x1b[1m",
    "info": "\x1b[32m\x1b[1m",
    "warning": "\x1b[33m\x1b[1m",
    "error": "\x1b[31m\x1b[1m",
    "critical": "\x1b[31m\x1b[1m",
}
_LEVEL_WIDTH: Final = 9


def escaped(text: str) -> str:
    r"""Write control characters as `\n`, `\x1b` or `\u2028`."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def json_formatter(*, project: str | None = None, **process: str) -> logging.Formatter:
    """Return a formatter that writes each record as a JSON object, with the fields that Google Cloud Logging reads.

    `project`: the Google Cloud project that holds the traces. `process`: fields that each line has about the process.
    """
    return _JsonFormatter(project, process)


def text_formatter(
    *, colors: bool = False, lines: bool = False, process: Mapping[str, str] | None = None
) -> logging.Formatter:
    """Return a formatter that writes each record as one line of text.

    `lines`: keep the lines of tracebacks, for terminals. `process`: fields that each line has about the process.
    """
    return _TextFormatter(colors=colors, lines=lines, process=process or {})


class _JsonFormatter(logging.Formatter):
    def __init__(self, project: str | None, process: Mapping[str, str]) -> None:
        super().__init__()
        self._project = project
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "severity": _severity(record.levelno),
            "message": record.getMessage(),
            "time": _time(record).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "logger": record.name,
            **self._process,
        }
        if trace := _traceback(self, record):
            line["stack_trace"] = trace  # the field that Cloud Error Reporting reads
        fields = _fields(record)
        if self._project is not None and {"trace_id", "span_id", "trace_sampled"} <= fields.keys():
            line["logging.googleapis.com/trace"] = f"projects/{self._project}/traces/{fields.pop('trace_id')}"
            line["logging.googleapis.com/spanId"] = fields.pop("span_id")
            line["logging.googleapis.com/trace_sampled"] = fields.pop("trace_sampled")
        # No field replaces one of these.
        return _json({**fields, **line} if fields.keys() & line.keys() else line | fields)


class _TextFormatter(logging.Formatter):
    def __init__(self, *, colors: bool, lines: bool, process: Mapping[str, str]) -> None:
        super().__init__()
        self._process = process
        self._colors = colors
        self._lines = lines

    def format(self, record: logging.LogRecord) -> str:
        message, trace, fields = escaped(record.getMessage()), _traceback(self, record), _fields(record)
        if "stream_id" in fields and str(fields["stream_id"]) in message:
            del fields["stream_id"]
        fields.pop("trace_sampled", None)
        if trace and not self._lines:
            message += escaped("\n" + trace)
        line = self._line(record, message, fields)
        return "\n".join([line, *map(escaped, trace.split("\n"))]) if trace and self._lines else line

    def _line(self, record: logging.LogRecord, message: str, fields: Mapping[str, Any]) -> str:
        level = record.levelname.lower()
        parts = [
            self._styled(_DIM, _time(record).astimezone().strftime("%Y-%m-%d %H:%M:%S")),
            f"[{self._styled(_LEVEL_STYLES.get(level, ''), level.ljust(_LEVEL_WIDTH))}]",
            self._styled(_BOLD, message),
            self._bracketed(escaped(record.name)),
            *(
                f"{self._styled(_CYAN, escaped(name))}={self._styled(_MAGENTA, _shown(value))}"
                for name, value in {**fields, **self._process}.items()
            ),
        ]
        return " ".join(filter(None, parts)).rstrip(" ")

    def _bracketed(self, name: str) -> str:
        reset = _RESET if self._colors else ""
        return f"[{reset}{self._styled(_BOLD_BLUE, name)}]{reset}"

    def _styled(self, style: str, text: str) -> str:
        return f"{style}{text}{_RESET}" if self._colors else text


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return a record's fields except its message and its error, without empty ones."""
    own = {name: value for name, value in record.__dict__.items() if name not in _NOT_FIELDS}
    if record.stack_info:
        own = {"stack_info": record.stack_info, **own}
    of_structlog = record.__dict__.get(STRUCTLOG_FIELDS)
    fields = {**of_structlog, **own} if of_structlog else own
    for name, value in list(fields.items()):
        if value is None or value == "" or (value == NOBODYS and name in FIELDS):
            del fields[name]
    if "trace_id" not in fields:
        fields.pop("trace_sampled", None)
    return fields


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    error = record.exc_info
    return formatter.formatException(error) if error and error[0] is not None else None


def _shown(value: object) -> str:
    """Write a field's value for people: a string with quotes only where it would be ambiguous without."""
    if isinstance(value, bool | int | float | None):
        return repr(value)
    text = escaped(str(value))
    return repr(text) if _QUOTED.search(text) else text


def _severity(level: int) -> str:
    """Return the severity for Cloud Logging, which knows only the levels of the standard library."""
    for least in (logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO):
        if level >= least:
            return logging.getLevelName(least)
    return "DEBUG"


def _time(record: logging.LogRecord) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(record.created, datetime.UTC)


def _json(line: dict[str, Any]) -> str:
    """Encode a line. A reader decodes each character, and none can control a terminal or a program in between."""
    try:
        encoded = orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:
        # A lone surrogate, a number that is too large, a cycle: values that JSON, or orjson, cannot represent.
        plain = {without_surrogates(name): _plain(value) for name, value in line.items()}
        encoded = orjson.dumps(plain)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", encoded.decode())


def _plain(value: object) -> object:
    return value if isinstance(value, bool | float | None) else without_surrogates(str(value))
