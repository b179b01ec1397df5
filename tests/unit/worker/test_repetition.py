"""What a generator repeats, compared with the log."""

from __future__ import annotations

from typing import Any

import pytest

from baton.generators import Yielded
from baton.worker.repetition import OutputDiffers, Repetition

CALL: dict[str, Any] = {"type": "tool_call", "index": 0, "id": "a", "name": "say"}


def text(delta: str) -> dict[str, Any]:
    return {"type": "text", "delta": delta}


@pytest.mark.parametrize(
    ("logged", "repeated"),
    [
        (text("\ufffd!"), "\ude00!"),
        (text("\U0001f600!"), "\ud83d\ude00!"),
        ({"type": "reasoning", "delta": "a\ufffdb"}, {"type": "reasoning", "delta": "a\ud83db"}),
        (CALL | {"arguments_delta": '"\ufffd"'}, CALL | {"arguments_delta": '"\ude00"'}),
    ],
)
def test_surrogates_are_compared_as_the_log_has_them(logged: dict[str, Any], repeated: Yielded) -> None:
    repetition = Repetition([logged])
    assert repetition.strip(repeated) is None
    assert repetition.complete


def test_deltas_may_be_cut_differently_and_their_rest_is_new() -> None:
    repetition = Repetition([text("ab"), text("cde"), {"type": "reasoning", "delta": "x"}, text("f")])
    assert [repetition.strip(item) for item in ("a", "bcd", "e")] == [None, None, None]
    assert repetition.strip({"type": "reasoning", "delta": "x"}) is None
    assert repetition.strip("fgh") == "gh"
    assert repetition.complete


@pytest.mark.parametrize("again", [["ab", "x"], ["a", "bc", "x"], ["abd"], [{"type": "reasoning", "delta": "a"}]])
def test_a_difference_in_any_part_of_a_text_is_found(again: list[Yielded]) -> None:
    repetition = Repetition([text("ab"), text("c"), {"type": "custom", "name": "mark"}])
    for item in again[:-1]:
        repetition.strip(item)
    with pytest.raises(OutputDiffers):
        repetition.strip(again[-1])


def test_a_long_answer_is_compared_in_the_time_that_its_length_takes() -> None:
    """A time that grew with the square would exceed the time limit of tests by far."""
    deltas = ["x" * 100] * 60_000
    repetition = Repetition(map(text, deltas))
    for delta in deltas:
        assert repetition.strip(delta) is None
    assert repetition.complete
