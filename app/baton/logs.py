"""How processes log: one line for each record, whatever it holds.

What comes from outside (paths, names, a provider's sentences) reaches the log as part of messages. So control
characters, which could begin a new line or tell a terminal what to do, are escaped here, for all loggers at once.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Final

from rich.console import Console
from rich.logging import RichHandler

from .request_ids import RequestIdFilter

_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"

# C0, DEL and C1; what else ends a line or turns the direction of writing; lone surrogates, which no stream can write.
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Formatter(logging.Formatter):
    """Escapes control characters, and says which request a record belongs to.

    With `lines`, which is for people at a terminal, a traceback keeps its lines.
    """

    def __init__(self, form: str, *, lines: bool = False) -> None:
        super().__init__(form)
        self._lines = lines

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the message, without what follows it, as one line."""
        request_id = getattr(record, "request_id", "-")
        belongs = "" if request_id == "-" else f" (request {request_id})"
        return escaped(super().formatMessage(record) + belongs)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record, with the traceback that it may have."""
        whole = super().format(record)
        return "\n".join(map(escaped, whole.split("\n"))) if self._lines else escaped(whole)


def escaped(text: str) -> str:
    r"""Write control characters as `\n`, `\x1b` or `\u2028`."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def configure(terminal: Console) -> None:
    """Have this process log to standard error: for people, if that is a terminal, else for whatever collects logs."""
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=terminal, show_path=False, rich_tracebacks=False)
        handler.setFormatter(Formatter("%(message)s", lines=True))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(Formatter(_FORMAT))
    handler.addFilter(RequestIdFilter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
