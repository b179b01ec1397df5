"""Plain text: what it says, and how it ends where it is not the whole."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from tests.support.wire import ANSWERS, SIZES, batches, sent

from baton.dialects.protocol import Reader
from baton.dialects.text import START, TEXT
from baton.events import without_surrogates
from baton.outcome import Outcome

RESET = {"type": "reset", "reason": "worker_lost"}


@given(ANSWERS, SIZES)
def test_the_dialect_sends_only_the_text(answer: list[Any], sizes: list[int]) -> None:
    text = "".join(without_surrogates(event) for event in answer if isinstance(event, str))
    assert sent(TEXT, START, batches(answer, sizes)).decode() == text


@pytest.mark.parametrize(
    ("events", "over"),
    [
        (["a", Outcome.completed("stop")], "ended"),
        (["a", Outcome.failed("x", "y")], "cut"),
        (["a", Outcome.cancelled()], "cut"),
        (["a", RESET, "b", Outcome.completed("stop")], "cut"),
        ([RESET, "b", Outcome.completed("stop")], "ended"),
        (["a"], None),
    ],
)
@pytest.mark.parametrize("sizes", [(), (1, 1, 1)])
def test_only_a_complete_answer_ends_cleanly(events: list[Any], over: str | None, sizes: tuple[int, ...]) -> None:
    reader = Reader(TEXT, START, 0)
    body = reader.read(batches(events, sizes))
    assert reader.over == over
    assert body == (b"a" if events[0] == "a" else b"b")
