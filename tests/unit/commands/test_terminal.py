from __future__ import annotations

import io
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from baton.commands.terminal import AnswerPrinter, Flow
from baton.generators.replay import load_transcripts


def console(*, terminal: bool, width: int = 60) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, color_system=None, width=width), file


def shown(events: list[dict[str, Any]], *, terminal: bool = False, width: int = 60) -> str:
    made, file = console(terminal=terminal, width=width)
    answer = AnswerPrinter(Flow(made))
    for event in events:
        answer.show(event)
    answer.end()
    return plain(file.getvalue())


def plain(text: str) -> str:
    for code in ("\x1b[2;3m", "\x1b[2m", "\x1b[0m"):
        text = text.replace(code, "")
    return text


def transcript(name: str) -> list[dict[str, Any]]:
    return [dict(event) for _, event in load_transcripts()[name].events]


@pytest.mark.parametrize("name", sorted(load_transcripts()))
def test_text_is_shown_unchanged_without_a_terminal(name: str) -> None:
    events = transcript(name)
    text = "".join(event["delta"] for event in events if event["type"] == "text")
    assert shown(events).endswith(text.rstrip("\n") + "\n")


@pytest.mark.parametrize("width", [20, 60, 100])
@pytest.mark.parametrize("name", sorted(load_transcripts()))
def test_a_terminal_breaks_between_words_only(name: str, width: int) -> None:
    events = [event for event in transcript(name) if event["type"] == "text"]
    lines = shown(events, terminal=True, width=width).split("\n")
    assert "".join(event["delta"] for event in events).split() == " ".join(lines).split()
    assert [line for line in lines if cell_len(line.rstrip()) > width and " " in line.strip()] == []


def test_a_word_that_arrives_in_chunks_is_not_broken() -> None:
    pieces: list[dict[str, Any]] = [
        {"type": "text", "delta": delta} for delta in ("12345", "678", " ab", "cd", "ef", " g")
    ]
    assert shown(pieces, terminal=True, width=10).split("\n") == ["12345678 ", "abcdef g", ""]


def test_each_kind_of_event_has_its_own_place() -> None:
    events: list[dict[str, Any]] = [
        {"type": "reasoning", "delta": "Hm."},
        {"type": "tool_call", "index": 0, "id": "a", "name": "look", "arguments_delta": '{"x"'},
        {"type": "tool_call", "index": 0, "arguments_delta": ":1}"},
        {"type": "tool_call", "index": 1, "id": "b", "name": "ask", "arguments_delta": "{}"},
        {"type": "tool_result", "id": "a", "result": [1]},
        {"type": "usage", "total_tokens": 3},
        {"type": "text", "delta": "So."},
        {"type": "done", "status": "completed"},
    ]
    assert shown(events) == 'Hm.\n\n> look {"x":1}\n> ask {}\n  = [1]\n\nSo.\n'


def test_control_characters_do_nothing_to_a_terminal() -> None:
    said = "a\x1b]0;b\x07 \x9b31m \u202ec\rd\n"
    events: list[dict[str, Any]] = [
        {"type": "text", "delta": said},
        {"type": "tool_call", "index": 0, "id": "1", "name": "\x1b[2J", "arguments_delta": "{}"},
        {"type": "custom", "name": "\x1b[5m", "data": 1},
    ]
    on_terminal = shown(events, terminal=True)
    assert not set(on_terminal) & set("\x1b\x07\x9b\u202e\r")
    assert on_terminal.startswith("a\\x1b]0;b\\x07 \\x9b31m \\u202ec\\rd\n")
    assert "a\x1b]0;b" in shown(events)
    made, file = console(terminal=True)
    Flow(made).line("\x1b[7mreason", "dim")
    assert "\x1b[7m" not in file.getvalue()


def test_a_line_interrupts_the_text_which_continues_without_its_space() -> None:
    made, file = console(terminal=False)
    flow = Flow(made)
    flow.write("half a")
    flow.line("-- interrupted")
    flow.write(" sentence\n  indented")
    flow.end_line()
    assert file.getvalue() == "half a\n-- interrupted\nsentence\n  indented\n"


def test_a_continued_answer_is_marked_in_a_terminal_only() -> None:
    events: list[dict[str, Any]] = [
        {"type": "text", "delta": "for"},
        {"type": "resumed", "run": 2, "reason": "worker_left"},
        {"type": "text", "delta": "ty"},
    ]
    assert shown(events) == "forty\n"
    assert shown(events, terminal=True) == "for\n· another worker continues the answer (worker_left)\nty\n"
