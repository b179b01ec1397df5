"""Every code that a client can get is explained once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tools.errors_page import PAGE, page

import baton
from baton import codes, errors
from baton.codes import ENDS, REFUSALS
from baton.errors import RequestError

PACKAGE = Path(baton.__file__).parent
# Calls that end a stream with the code in their first argument.
MAKERS = {"GenerationError", "failed"}
# Packages with made-up codes.
NO_CLIENTS = {"chaos"}


def strings(node: ast.expr) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value


def used() -> Iterator[str]:
    """Yield the codes that the package's source gives to streams."""
    for file in sorted(PACKAGE.rglob("*.py")):
        if NO_CLIENTS & set(file.relative_to(PACKAGE).parts):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and node.args:
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name in MAKERS:
                    yield from strings(node.args[0])


def test_each_code_is_explained_once() -> None:
    known = [code.code for code in (*REFUSALS, *ENDS)]
    assert len(known) == len(set(known))
    for code in (*REFUSALS, *ENDS):
        assert code.title
        assert not code.title.endswith(".")
        for text in (code.happened, code.client, code.operator):
            assert text.endswith("."), code
    undescribed = {code.code for code in REFUSALS} - codes.ADVICE.keys()
    assert not undescribed, "Add advice for each to baton.codes"
    assert codes.ADVICE.keys() <= {code.code for code in REFUSALS}


def test_every_error_class_has_a_code() -> None:
    defined = {
        error.code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, RequestError) and hasattr(error, "code")
    }
    assert defined == {code.code for code in REFUSALS}


def test_every_end_of_a_stream_is_explained() -> None:
    found = set(used())
    assert {"worker_lost", "queue_timeout", "generator_error", "provider_cut_off", "max_duration"} <= found
    missing = found - {code.code for code in ENDS} - {code.code for code in REFUSALS}
    assert not missing, "Explain each in baton.codes"


def test_the_errors_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "Run: python -m tools.errors_page"
