"""What users read of errors: nothing of settings, workers, logs, or names that they did not give themselves."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import baton
from baton import outcome
from baton.db import stream_ending
from baton.dialects import aisdk, openai
from baton.errors import GENERATOR_FAULT, POD_FAULT, GenerationError, InvalidEvent, RequestError
from baton.pod import event_stream
from baton.worker import outbox

HERE = Path(baton.__file__).parent
# A proxy's setting is for those who set up HTTP/1.1; the names of cookies and queries are the client's own.
INTERNAL = re.compile(
    r"BATON_[A-Z]|\bworkers?\b|\bpods?\b|\blogs?\b|\bKnown are\b|\bthere are \{|\bsubscribers?\b|\bdatabase\b"
)
# Without what is refused before there is a request, and commands, which only operators see.
APART = {"chaos", "doctor", "cli.py", "demo.py"}


def errors(kind: type[BaseException]) -> Iterator[str]:
    yield kind.__name__
    for each in kind.__subclasses__():
        yield from errors(each)


SHOWN = {*errors(RequestError), "GenerationError", "failed"}


def said(node: ast.AST) -> str:
    """The literal text in an expression, with `{…}` for what is filled in."""
    return "".join(
        part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "{…}"
        for part in ast.walk(node)
        if isinstance(part, ast.Constant | ast.FormattedValue)
    )


def messages() -> Iterator[tuple[str, str]]:
    for path in sorted(HERE.rglob("*.py")):
        if APART & set(path.relative_to(HERE).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in SHOWN:
                for argument in node.args:
                    yield f"{path.relative_to(HERE)}:{node.lineno}", said(argument)


def test_no_error_shows_text_for_the_operator() -> None:
    found = list(messages())
    assert len(found) > 100
    assert [(where, text) for where, text in found if INTERNAL.search(text)] == []


@pytest.mark.parametrize(
    "text",
    [
        *(GENERATOR_FAULT, POD_FAULT, outcome.WORKER_LOST_MESSAGE, aisdk.RESET, openai.RESET),
        *(str(end.error_message) for end in (stream_ending.REWOUND, stream_ending.QUEUE_TIMEOUT)),
        *(str(end.error_message) for end in outbox._OUTCOMES.values()),
        event_stream._NOT_ENCODABLE[1],
    ],
)
def test_no_constant_has_text_for_the_operator(text: str) -> None:
    assert not INTERNAL.search(text)


def test_an_error_keeps_details_for_the_log() -> None:
    error = GenerationError("invalid_input", "There is no transcript 'x'.", operator="there are a, b")
    assert (str(error), error.operator) == ("There is no transcript 'x'.", "there are a, b")
    wrong = InvalidEvent("An event's type is one of a, b, not 'c'.")
    assert wrong.message == GENERATOR_FAULT
    assert str(wrong) == wrong.operator == "An event's type is one of a, b, not 'c'."
