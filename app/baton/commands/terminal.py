"""Shows an answer in the terminal as it arrives; without a terminal, the same as plain text.

A model's text may hold control characters, which a terminal would obey: they are shown escaped there.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from typing import Any, Final

import orjson
from rich.cells import cell_len, chop_cells
from rich.console import Console

from ..observability.log_formatters import escaped

_WORDS_AND_SPACES: Final = re.compile(r"\s|\S+")
_HARMLESS: Final = frozenset({" ", "\n", "\t"})
_STYLES: Final = {
    "reasoning": "dim italic",
    "tool_call": "cyan",
    "tool_result": "dim cyan",
    "tool_approval": "yellow",
    "custom": "dim",
}


class Output(Console):
    """Standard output of a command that has processes to end: it raises when its reader goes away (`| head`).

    rich would end the process with `SystemExit`, which in a task of asyncio's stops the loop and leaves the others
    without their clean-up.
    """

    def __init__(self) -> None:
        super().__init__(highlight=False)

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, and write nothing more."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class Flow:
    """Text that is written as it comes, and broken between words at the width of the terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._column = 0
        self._word = ""
        self._style: str | None = None
        self._after_line = False

    def write(self, text: str, style: str | None = None) -> None:
        """Write a chunk of text. Its last word is held back until it is known to be whole."""
        if style != self._style:
            self.flush()
            self._style = style
        for piece in map(self._shown, _WORDS_AND_SPACES.findall(text)):
            if not piece.isspace():
                self._word += piece
                continue
            self.flush()
            if piece == "\n":
                self._break()
            elif not (self._after_line and self._column == 0):
                self._space(piece)

    def flush(self) -> None:
        """Write what was held back."""
        word, self._word = self._word, ""
        if not word:
            return
        width = cell_len(word)
        if self._console.is_terminal and self._column > 0 and self._column + width > self._console.width:
            self._break()
        self._out(word)
        self._column += width
        if self._console.is_terminal and self._column > self._console.width:
            self._column = cell_len(chop_cells(word, self._console.width)[-1])
        self._after_line = False

    def line(self, text: str = "", style: str | None = None) -> None:
        """Write a line of its own, wherever the text is just now."""
        self.end_line()
        self._console.print(
            self._shown(text), style=style, markup=False, highlight=False, soft_wrap=not self._console.is_terminal
        )
        self._after_line = True

    def end_line(self) -> None:
        """Go to the beginning of a line."""
        self.flush()
        if self._column:
            self._break()

    def _shown(self, piece: str) -> str:
        return escaped(piece) if self._console.is_terminal and piece not in _HARMLESS else piece

    def _space(self, piece: str) -> None:
        # A terminal breaks the line by itself after the last column.
        if not self._console.is_terminal or self._column < self._console.width:
            self._out(piece)
            self._column += 1

    def _break(self) -> None:
        self._out("\n")
        self._column = 0
        self._after_line = False

    def _out(self, text: str) -> None:
        self._console.out(text, style=self._style if text.strip() else None, end="", highlight=False)


class AnswerPrinter:
    """The events of one stream, each shown by its kind: reasoning dim, calls of tools marked, text as it is."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._kind = ""
        self._call = -1

    def show(self, event: dict[str, Any]) -> None:
        """Show an event."""
        kind = event["type"]
        if kind == "reset":
            self._flow.line(f"The answer restarts ({event.get('reason')}). Discard what came before.", "yellow")
        if kind not in {"text", *_STYLES}:
            return
        if kind != self._kind:
            self._separate(kind)
        self._flow.write(self._words(kind, event), _STYLES.get(kind))

    def end(self) -> None:
        """Finish the line."""
        self._flow.end_line()

    def _separate(self, kind: str) -> None:
        self._flow.end_line()
        if self._kind and kind not in {"tool_result", "tool_approval"}:
            self._flow.line()
        self._kind = kind
        self._call = -1

    def _words(self, kind: str, event: dict[str, Any]) -> str:
        if kind == "tool_call":
            return self._call_words(event)
        if kind == "tool_result":
            return "  = " + _json(event.get("result"))
        if kind == "tool_approval":
            return f"  ? {event['id']} is waiting for the user's approval"
        if kind == "custom":
            return f"{event.get('name')} {_json(event.get('data'))}\n"
        return str(event.get("delta", ""))

    def _call_words(self, event: dict[str, Any]) -> str:
        words = str(event.get("arguments_delta") or "")
        if event["index"] == self._call:
            return words
        before = "\n" if self._call >= 0 else ""
        self._call = event["index"]
        return f"{before}> {event.get('name')} {words}"


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
