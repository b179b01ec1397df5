"""Prints an answer as it arrives: styled in a terminal, otherwise as plain text.

A model's text may hold control characters, which a terminal would execute: there they are escaped.
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

_CONTINUED: Final = {
    "input": "an input came, and the answer continues",
    "deadline": "no input came in time, and the answer continues",
}


class Output(Console):
    """Standard output of a command that owns processes: it raises when its reader goes away (`| head`).

    rich would raise `SystemExit`, which in a task of asyncio stops the loop, so that other tasks do not clean up.
    """

    def __init__(self) -> None:
        super().__init__(highlight=False)

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, and discard further output."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class Flow:
    """Writes text as it arrives, wrapped between words at the width of the terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._column = 0
        self._word = ""
        self._style: str | None = None
        self._after_line = False

    @property
    def is_terminal(self) -> bool:
        """Whether a person sees it, so that lines may stand between the text."""
        return self._console.is_terminal

    def write(self, text: str, style: str | None = None) -> None:
        """Write a chunk of text. Its last word is held until it is complete."""
        if style != self._style:
            self.flush()
            self._style = style
        for part in map(self._shown, _WORDS_AND_SPACES.findall(text)):
            if not part.isspace():
                self._word += part
                continue
            self.flush()
            if part == "\n":
                self._break()
            elif not (self._after_line and self._column == 0):
                self._space(part)

    def flush(self) -> None:
        """Write the held word."""
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
        """Write a separate line, wherever the text currently is."""
        self.end_line()
        self._console.print(
            self._shown(text), style=style, markup=False, highlight=False, soft_wrap=not self._console.is_terminal
        )
        self._after_line = True

    def end_line(self) -> None:
        """Start a new line, unless at the start of one."""
        self.flush()
        if self._column:
            self._break()

    def _shown(self, text: str) -> str:
        return escaped(text) if self._console.is_terminal and text not in _HARMLESS else text

    def _space(self, text: str) -> None:
        # A terminal wraps the line itself after the last column.
        if not self._console.is_terminal or self._column < self._console.width:
            self._out(text)
            self._column += 1

    def _break(self) -> None:
        self._out("\n")
        self._column = 0
        self._after_line = False

    def _out(self, text: str) -> None:
        self._console.out(text, style=self._style if text.strip() else None, end="", highlight=False)


class AnswerPrinter:
    """Prints the events of one stream by kind: reasoning dim, tool calls marked, text as it is."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._kind = ""
        self._call = -1

    def show(self, event: dict[str, Any]) -> None:
        """Print an event."""
        kind = event["type"]
        if kind == "reset":
            self._flow.line(f"The answer restarts ({event.get('reason')}). Discard what came before.", "yellow")
        if kind == "resumed" and self._flow.is_terminal:
            self._flow.line(f"· another worker continues the answer ({event.get('reason')})", "dim")
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


def end_words(event: dict[str, Any]) -> str:
    """Return a terminal event in one line: the status, the error, and how fast it was."""
    timings = event.get("timings") or {}
    words = [f"{event.get('status')} ({event.get('finish_reason')})"]
    if (error := event.get("error")) is not None:
        words.append(f"{error.get('code')}: {error.get('message')}")
    if timings.get("time_to_first_token_seconds") is not None:
        words.append(f"first token after {timings['time_to_first_token_seconds']:.2f} s")
    if timings.get("tokens_per_second") is not None:
        words.append(f"{timings['tokens']} tokens at {timings['tokens_per_second']:.0f}/s")
    return "· " + ", ".join(words)


def words_of_wait(event: dict[str, Any]) -> str | None:
    """Return what the beginning or the end of a wait means; None for other events."""
    if event.get("type") == "waiting":
        return f"it waits for {_json(event.get('for'))}, until {event.get('until')}"
    if event.get("type") != "resumed":
        return None
    return _CONTINUED.get(str(event.get("reason")))


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
