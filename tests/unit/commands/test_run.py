"""`baton run`: a generator in the terminal, without a database."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import orjson
import pytest
from tests.support.commands import told

AGENT = """
import baton

@baton.continues
async def generate(request):
    yield {"type": "continue", "after": request.so_far.seq}
    for word in f"You said: {request.input}".split()[len(request.so_far.text.split()):]:
        yield word + " "

@baton.continues
async def approve(request):
    yield {"type": "continue", "after": request.so_far.seq}
    if request.state is None:
        yield {"type": "tool_call", "index": 0, "id": "c", "name": "delete", "arguments_delta": "{}"}
        yield {"type": "wait", "for": {"type": "approval", "calls": ["c"]}, "until": 60, "state": 1}
    answer = await request.receive(0)
    yield "Nobody." if answer is None else "Allowed." if answer["approved"] else "Denied."

def fails(request):
    yield "a"
    raise ValueError("boom")
"""


@pytest.fixture(autouse=True)
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run_agent.py").write_text(AGENT)
    monkeypatch.chdir(tmp_path)


def ran(*arguments: str) -> tuple[int, str, str]:
    return told("run", *arguments, env={})


def test_the_answer_is_printed() -> None:
    code, out, err = ran("run_agent:generate", "good morning")
    assert (code, out) == (0, "You said: good morning \n")
    assert "completed (stop)" in err


def test_a_killed_answer_is_continued() -> None:
    code, out, err = ran("run_agent:generate", "good morning", "--kill-after", "2", "--json")
    events = [orjson.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [event["type"] for event in events] == ["text", "text", "resumed", "text", "text", "done"]
    assert [event["seq"] for event in events] == [1, 2, 3, 4, 5, 6]
    assert "the worker was killed after event 2" in err


def test_a_dialect_is_printed_as_its_clients_get_it() -> None:
    code, out, _ = ran("run_agent:generate", "--input", '{"q": 1}', "--dialect", "aisdk")
    assert code == 0
    assert out.startswith('data: {"type":"start"')
    assert out.endswith("data: [DONE]\n\n")
    assert "{'q':" in out


def test_an_input_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "question.json").write_text('"from a file"')
    assert ran("run_agent:generate", "--input", "question.json")[1] == "You said: from a file \n"


def test_a_generator_that_waits_needs_a_terminal_or_a_reply() -> None:
    code, _, err = ran("run_agent:approve")
    assert (code, "give --reply JSON" in err) == (1, True)
    code, out, _ = ran("run_agent:approve", "--reply", '{"approved": true}')
    assert (code, out.strip().splitlines()[-1]) == (0, "Allowed.")


class Person(io.StringIO):
    """Somebody at a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "said"), [("y\n", "Allowed."), ("\n", "Denied."), ("", "Nobody.")])
def test_a_person_at_a_terminal_is_asked(answer: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Person(answer))
    code, out, _ = ran("run_agent:approve")
    assert "Allow delete {}? [y/N] " in out
    assert (code, out.strip().splitlines()[-1]) == (0, said)


def test_a_failure_shows_the_traceback_of_the_generator() -> None:
    code, out, err = ran("run_agent:fails")
    assert (code, out) == (1, "a\n")
    assert "generator_error" in err
    assert 'run_agent.py", line' in err
    assert "ValueError: boom" in err
    assert "baton/worker" not in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run_agent:nosuch",), "the module 'run_agent' has no 'nosuch'"),
        (("nosuch_module:generate",), "there is no module 'nosuch_module', neither installed nor in the current dir"),
        (("run_agent",), "There is no generator 'run_agent'. Name the function of yours as module:function"),
        (("run_agent:AGENT_TEXT",), "has no 'AGENT_TEXT'"),
        (("run_agent:baton",), "is not a generator function"),
        (("openai",), "The generator 'openai' cannot be used yet"),
        (("run_agent:generate", "--input", "{"), "'{' is no file, and is not JSON"),
        (("run_agent:generate", "--dialect", "xml"), "There is no dialect 'xml'. Choose one of native, aisdk"),
        (("run_agent:generate", "hi", "--input", "1"), "The input is either PROMPT or --input."),
    ],
)
def test_a_mistake_is_said_in_a_sentence(
    arguments: tuple[str, ...], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "BATON_OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    code, _, err = ran(*arguments)
    assert code == 2
    assert sentence in " ".join(err.replace("│", " ").split())


def test_a_built_in_generator_runs_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_REPLAY_SPEED", "1000")
    code, out, _ = ran("replay", "outlive")
    assert code == 0
    assert len(out) > 500
