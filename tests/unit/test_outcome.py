"""The end of a stream: its terminal event and its row."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.outcome import Outcome, Timings
from baton.usage import numbers_only

words = st.from_regex(r"[a-z0-9_.-]{1,64}", fullmatch=True)
usages = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 2**53))
timings = st.builds(
    Timings,
    st.floats(0, 1e6).map(lambda seconds: round(seconds, 6)),
    st.none() | st.floats(0, 1e6).map(lambda seconds: round(seconds, 6)),
    st.integers(0, 2**31 - 1),
)


@given(st.sampled_from(["completed", "cancelled", "failed"]), words, st.none() | usages, timings)
def test_a_terminal_event_can_be_decoded(status: Any, word: str, usage: dict[str, int] | None, took: Timings) -> None:
    rest: dict[str, Any] = {"usage": usage, "timings": took}
    outcome = {
        "completed": lambda: Outcome.completed(word, **rest),
        "cancelled": lambda: Outcome.cancelled(**rest),
        "failed": lambda: Outcome.failed(word, "It went wrong.", **rest),
    }[status]()
    assert outcome.status == status
    assert Outcome.decode(outcome.encode()) == outcome


def test_a_terminal_event_has_its_status_and_reason() -> None:
    outcome = Outcome.failed("rate_limited", "Too many requests.", timings=Timings(2.0, 0.5, 4), usage={"total": 3})
    assert orjson.loads(outcome.encode()) == {
        "type": "done",
        "status": "failed",
        "finish_reason": "error",
        "usage": {"total": 3},
        "timings": {
            "duration_seconds": 2.0,
            "time_to_first_token_seconds": 0.5,
            "tokens": 4,
            "tokens_per_second": 2.0,
        },
        "error": {"code": "rate_limited", "message": "Too many requests."},
    }
    assert "error" not in orjson.loads(Outcome.completed("stop").encode())


@pytest.mark.parametrize(
    ("took", "rate"),
    [
        (Timings(), None),
        (Timings(5.0, None, 0), None),
        (Timings(5.0, 1.0, 1), None),
        (Timings(1.0, 1.0, 2), None),
        (Timings(5.0, 1.0, 9), 2.0),
        (Timings(3.0, 0.0, 2), 0.333),
    ],
)
def test_the_rate_is_measured_after_the_first_token(took: Timings, rate: float | None) -> None:
    assert took.tokens_per_second == rate


@pytest.mark.parametrize("word", ["", "Not A Word", "x" * 65, "caf\u00e9", "stop\n", 429, None, b"stop"])
def test_an_invalid_code_becomes_other(word: Any) -> None:
    assert Outcome.failed(word, "").error_code == "other"
    assert Outcome.completed(word).finish_reason == "other"


@pytest.mark.parametrize(
    ("given_message", "message"),
    [
        ("a\0b", "a\ufffdb"),
        ("\ud800", "\ufffd"),
        ("\ud83d\ude00", "\U0001f600"),
        ("x" * 3000, "x" * 2000),
        (ValueError("why"), "why"),
        (None, "None"),
    ],
)
def test_a_message_fits_a_text_column(given_message: Any, message: str) -> None:
    assert Outcome.failed("x", given_message).error_message == message


def test_usage_keeps_only_numbers() -> None:
    usage = {
        "type": "usage",
        "input_tokens": 3,
        "cost": 0.5,
        "cached": True,
        "details": {"reasoning": 1},
        "nul\0": 1,
        "lone\ud800": 2,
        7: 1,
    }
    assert numbers_only(usage) == {"input_tokens": 3, "cost": 0.5, "lone\ufffd": 2, "7": 1}  # type: ignore[arg-type]
