"""One line in the log for each record, whatever is in it, and in it what programs look for."""

from __future__ import annotations

import datetime
import io
import json
import logging
import re
import sys
import uuid
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tests.support.log_record import PARENT, line, one_harmless_line

from baton.observability import log_config, log_context, traceparent
from baton.observability.log_context import ContextFilter
from baton.observability.log_formatters import json_formatter, text_formatter

HOSTILE = "a\n2026-01-01 INFO forged\r\x1b[2Jb\x00\x85\u2028\u2029\u202e\x9b1mé\ud800"
ESCAPED = r"a\n2026-01-01 INFO forged\r\x1b[2Jb\x00\x85\u2028\u2029\u202e\x9b1mé\ud800"


def record(
    message: str = "%s", *arguments: object, error: BaseException | None = None, level: int = logging.INFO, **extra: Any
) -> logging.LogRecord:
    told = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord("baton.x", level, __file__, 1, message, arguments, told)
    made.__dict__.update(extra)
    ContextFilter().filter(made)
    return made


def raised(message: str) -> Exception:
    try:
        raise RuntimeError(message)
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("level", "severity"),
    [(5, "DEBUG"), (10, "DEBUG"), (20, "INFO"), (25, "INFO"), (30, "WARNING"), (40, "ERROR"), (50, "CRITICAL")],
)
def test_a_line_has_the_fields_of_cloud_logging(level: int, severity: str) -> None:
    made = record("%d %s", 1, "a", level=level)
    read = line(made, pod="pod-1")
    when = datetime.datetime.fromisoformat(read.pop("time"))
    assert when.timestamp() == pytest.approx(made.created, abs=1e-5)
    assert when.utcoffset() == datetime.timedelta(0)
    assert read == {"severity": severity, "message": "1 a", "logger": "baton.x", "pod": "pod-1"}


def test_an_error_has_its_traceback_where_error_reporting_expects_it() -> None:
    read = line(record("broken", error=raised(HOSTILE), level=logging.ERROR))
    assert read["message"] == "broken"
    assert read["stack_trace"].startswith("Traceback (most recent call last):\n")
    assert read["stack_trace"].rstrip().endswith(HOSTILE.replace("\ud800", "\ufffd"))


def test_json_lines_have_the_logged_message() -> None:
    said = HOSTILE.replace("\ud800", "")
    read = line(record("%s", said, inner={"a": [said]}, stream_id=uuid.UUID(int=1)))
    assert (read["message"], read["inner"]) == (said, {"a": [said]})
    assert read["stream_id"] == str(uuid.UUID(int=1))


class Circle:
    def __repr__(self) -> str:
        return HOSTILE


def test_values_that_json_cannot_hold_are_logged_as_text() -> None:
    circle: list[Any] = []
    circle.append(circle)
    for odd in (HOSTILE, {"a": HOSTILE}, 1 << 80, circle, Circle(), {HOSTILE: Circle()}, float("nan"), b"\xff"):
        assert "odd" in line(record("a", odd=odd))


def test_extra_fields_cannot_replace_standard_fields() -> None:
    read = line(record("a", severity="EMERGENCY", time="never", pod="mine", stack_trace="forged"), pod="pod-1")
    assert (read["severity"], read["message"], read["pod"]) == ("INFO", "a", "pod-1")
    assert read["time"] != "never"


def test_a_line_names_its_stream_and_request() -> None:
    stream_id = uuid.uuid4()
    with log_context.of_stream(stream_id), traceparent.within(PARENT):
        made = record("a", request_id="mine")
    read = line(made)
    assert (read["stream_id"], read["request_id"]) == (str(stream_id), "mine")
    assert (read["trace_id"], read["span_id"], read["trace_sampled"]) == (PARENT.trace_id, PARENT.span_id, True)
    read = line(made, project="mine")
    assert read["logging.googleapis.com/trace"] == f"projects/mine/traces/{PARENT.trace_id}"
    assert read["logging.googleapis.com/spanId"] == PARENT.span_id
    assert read["logging.googleapis.com/trace_sampled"] is True
    assert not {"trace_id", "span_id", "trace_sampled"} & read.keys()
    assert not {"stream_id", "request_id", "trace_id", "span_id", "trace_sampled"} & line(record("a")).keys()


def test_an_unfiltered_record_is_logged() -> None:
    made = logging.LogRecord("baton.x", logging.INFO, __file__, 1, "hello", (), None)
    assert line(made, project="mine")["message"] == "hello"
    made.trace_id = "theirs"
    assert line(made, project="mine")["trace_id"] == "theirs"


@given(st.text(st.characters(exclude_categories=())))
def test_no_text_makes_a_second_line_or_moves_a_cursor(text: str) -> None:
    made = record("%s", text, error=raised(text), field=text, level=logging.ERROR)
    assert one_harmless_line(json_formatter().format(made))
    assert one_harmless_line(text_formatter().format(made))


def test_control_characters_are_escaped() -> None:
    for lines in (False, True):
        assert f" {ESCAPED} [baton.x]" in text_formatter(lines=lines).format(record("%s", HOSTILE))


def test_a_traceback_goes_into_the_line_but_at_a_terminal() -> None:
    made = record("broken", error=raised(HOSTILE))
    text = text_formatter().format(made)
    assert "\n" not in text
    assert r"broken\nTraceback (most recent call last):\n" in text
    assert "RuntimeError: " + ESCAPED in text
    lines = text_formatter(lines=True).format(made).split("\n")
    assert lines[1] == "Traceback (most recent call last):"
    assert not any("\x1b" in line or "\r" in line for line in lines)


def test_text_lines_show_fields_and_name_a_stream_once() -> None:
    stream_id = uuid.uuid4()
    with log_context.of_stream(stream_id):
        text = text_formatter().format(record("Stream %s is gone.", stream_id, reason="a b", events=3))
        assert text.endswith(f"Stream {stream_id} is gone. [baton.x] reason='a b' events=3")
        assert f"stream_id={stream_id}" in text_formatter().format(record("Gone."))


def test_a_line_of_text_in_full() -> None:
    made = record("Stream %s has ended.", "x", level=logging.WARNING, code="a b", events=3, empty="", none=None)
    made.created = datetime.datetime(2026, 1, 2, 3, 4, 5).timestamp()
    plain = "2026-01-02 03:04:05 [warning  ] Stream x has ended. [baton.x] code='a b' events=3"
    assert text_formatter().format(made) == plain
    colored = text_formatter(colors=True).format(made)
    assert re.sub("\x1b\\[\\d+m", "", colored) == plain
    assert "\x1b[33m\x1b[1mwarning  \x1b[0m" in colored


def test_a_stack_is_a_field_and_no_error_is_no_traceback() -> None:
    made = record("where")
    made.stack_info, made.exc_info = "Stack (most recent call last):", (None, None, None)
    assert line(made)["stack_info"] == "Stack (most recent call last):"
    assert "stack_trace" not in line(made)


@pytest.fixture
def restored() -> Iterator[None]:
    """What a process configures for itself, as it was before."""
    root, ours = logging.getLogger(), logging.getLogger("baton")
    handlers, level, our_level, hook = list(root.handlers), root.level, ours.level, sys.excepthook
    # Another test may have left it on, while pytest has put back what shows warnings. Then turning it on does nothing.
    logging.captureWarnings(False)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(our_level)
    sys.excepthook = hook
    logging.captureWarnings(False)
    structlog.reset_defaults()


def configured(monkeypatch: pytest.MonkeyPatch, *, terminal: bool = False, **options: Any) -> io.StringIO:
    shown = io.StringIO()
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    log_config.configure(
        Console(file=shown, force_terminal=terminal, color_system="standard" if terminal else None), **options
    )
    return shown


@pytest.mark.usefixtures("restored")
def test_only_the_formatter_adds_color_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = configured(monkeypatch, terminal=True)
    logging.getLogger("baton.x").warning("[red]%s[/red]", "a\x1b[31m\nb")
    assert r"[red]a\x1b[31m\nb[/red]" in shown.getvalue()
    assert "\x1b[33m" in shown.getvalue()


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("form", ["auto", "json", "text"])
def test_the_log_format_follows_the_setting(monkeypatch: pytest.MonkeyPatch, form: str, terminal: bool) -> None:
    shown = configured(monkeypatch, terminal=terminal, form=form)
    logging.getLogger("baton.x").info("hello")
    assert shown.getvalue().startswith("{") == (form == "json" or (form == "auto" and not terminal))


@pytest.mark.usefixtures("restored")
def test_the_level_applies_to_baton_and_hides_debug_lines_of_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = configured(monkeypatch, level="debug")
    for name in ("baton.x", "openai", "httpx2"):
        logging.getLogger(name).debug("details")
        logging.getLogger(name).warning("trouble")
    told = [(read["logger"], read["message"]) for read in map(json.loads, shown.getvalue().splitlines())]
    assert told == [("baton.x", "details"), *((name, "trouble") for name in ("baton.x", "openai", "httpx2"))]
    shown = configured(monkeypatch, level="error")
    logging.getLogger("baton.x").warning("trouble")
    assert not shown.getvalue()


@pytest.mark.usefixtures("restored")
def test_warnings_uncaught_exceptions_and_structlog_lines_are_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = configured(monkeypatch, worker="w-1")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old", stacklevel=1)
    error = raised("unexpected")
    sys.excepthook(type(error), error, error.__traceback__)
    structlog.get_logger("mine").info("hello %s", "you", answer=42, name="a field")
    try:
        raise error
    except RuntimeError:
        structlog.get_logger("mine").exception("100%")
    warned, ended, own, failed = map(json.loads, shown.getvalue().splitlines())
    assert (warned["severity"], warned["logger"]) == ("WARNING", "py.warnings")
    assert (ended["severity"], ended["worker"]) == ("CRITICAL", "w-1")
    assert "RuntimeError: unexpected" in ended["stack_trace"]
    assert (own["message"], own["answer"], own["name"], own["logger"]) == ("hello you", 42, "a field", "mine")
    assert (failed["severity"], failed["message"], failed["logger"]) == ("ERROR", "100%", "mine")
    assert "RuntimeError: unexpected" in failed["stack_trace"]


def test_lines_of_several_processes_say_which_one_wrote_them() -> None:
    made = record("Ready.")
    assert line(made, pod="pod-1", process="1")["process"] == "1"
    assert text_formatter(process={"process": "1"}).format(made).endswith(" process=1")
    assert "process=" not in text_formatter().format(made)
