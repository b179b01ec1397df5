"""One line in the log for each record, whatever is in it."""

from __future__ import annotations

import io
import logging
import unicodedata
from collections.abc import Iterator

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tests.logbook import connected
from tests.processes import SERVES, environment, running

from baton import logs
from baton.logs import Formatter

HOSTILE = "a\n2026-01-01 INFO forged\r\x1b[2Jb\x00\x85\u2028\u2029\u202e\x9b1mé\ud800"
ESCAPED = r"a\n2026-01-01 INFO forged\r\x1b[2Jb\x00\x85\u2028\u2029\u202e\x9b1mé\ud800"


def record(message: str = "%s", *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    told = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("baton", logging.INFO, __file__, 1, message, arguments, told)


def raised(message: str) -> Exception:
    try:
        raise RuntimeError(message)
    except RuntimeError as error:
        return error


def test_control_characters_are_escaped() -> None:
    assert Formatter("%(message)s").format(record("%s", HOSTILE)) == ESCAPED
    assert Formatter("%(message)s", lines=True).format(record("%s", HOSTILE)) == ESCAPED


def test_a_traceback_goes_into_the_line_but_at_a_terminal() -> None:
    error = raised(HOSTILE)
    line = Formatter("%(message)s").format(record("broken", error=error))
    assert "\n" not in line
    assert line.startswith(r"broken\nTraceback (most recent call last):\n")
    assert line.endswith("RuntimeError: " + ESCAPED)
    lines = Formatter("%(message)s", lines=True).format(record("broken", error=error)).split("\n")
    assert lines[:2] == ["broken", "Traceback (most recent call last):"]
    assert not any("\x1b" in line or "\r" in line for line in lines)


@given(st.text(st.characters(exclude_categories=())))
def test_no_text_makes_a_second_line_or_moves_a_cursor(text: str) -> None:
    line = Formatter("%(message)s").format(record("%s", text))
    assert len((line + ".").splitlines()) == 1
    assert not {unicodedata.category(char) for char in line} & {"Cc", "Cs", "Zl", "Zp"}


@pytest.fixture
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("restored")
def test_at_a_terminal_markup_and_escapes_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    logs.configure(Console(file=shown, width=200))
    logging.getLogger("baton.x").warning("[red]%s[/red]", "a\x1b[31m\nb")
    assert r"[red]a\x1b[31m\nb[/red]" in shown.getvalue()


async def test_a_hostile_request_is_one_line_in_the_log_of_a_pod(dsn: str) -> None:
    given = {"BATON_DATABASE_URL": dsn, "BATON_ALLOW_ANONYMOUS": "true", "BATON_DATABASE_TIMEOUT_SECONDS": "1"}
    async with running("serve", env=environment(BATON_PORT="0", **given)) as pod, connected(dsn) as connection:
        url = (await pod.said(SERVES))[2]
        async with connection.transaction(), httpx2.AsyncClient(timeout=20, trust_env=False) as client:
            await connection.execute("LOCK TABLE baton.stream IN ACCESS EXCLUSIVE MODE")
            path = "/v1/ai-sdk/chat/a%0A%E2%80%A8forged%1B%5B31m/stream"
            answer = await client.get(url + path, headers={"x-request-id": "hostile"})
            assert answer.status_code == 503
        line = (await pod.said("forged")).string
        assert r"GET /v1/ai-sdk/chat/a\n\u2028forged\x1b[31m/stream: The database does not answer" in line
        assert line.endswith("(request hostile)")
