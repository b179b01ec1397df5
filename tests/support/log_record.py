"""A log record, and the line it becomes."""

from __future__ import annotations

import json
import logging
import unicodedata
from typing import Any

from baton.observability import traceparent
from baton.observability.log_formatters import json_formatter

PARENT = traceparent.TraceParent("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")


def line(made: logging.LogRecord, **options: Any) -> dict[str, Any]:
    """The fields that a program reads from a record."""
    text = json_formatter(**options).format(made)
    assert one_harmless_line(text)
    read: dict[str, Any] = json.loads(text)
    return read


def one_harmless_line(text: str) -> bool:
    categories = {unicodedata.category(char) for char in text}
    return len((text + ".").splitlines()) == 1 and not categories & {"Cc", "Cs", "Zl", "Zp"} and "\u202e" not in text
