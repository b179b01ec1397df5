"""Characters that are yielded in two halves, by pure functions. `test_run.py` has what becomes of them in the log."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.events import without_surrogates
from baton.generators import Yielded
from baton.worker.half_characters import Halves

HIGH, LOW = "\ud83d", "\ude00"
ALONE = "\ufffd"


def reasoning(delta: str) -> dict[str, Any]:
    return {"type": "reasoning", "delta": delta}


def call(index: int, delta: str, **named: str) -> dict[str, Any]:
    return {"type": "tool_call", "index": index, **named, "arguments_delta": delta}


def joined(*items: Yielded) -> list[Yielded]:
    halves = Halves()
    return [whole for item in items for whole in halves.join(item)] + list(halves.rest())


RESULT = {"type": "tool_result", "id": "a", "result": 1}
CASES: dict[str, tuple[list[Yielded], list[Yielded]]] = {
    "text": ([f"a{HIGH}", f"{LOW}b"], ["a", f"{HIGH}{LOW}b"]),
    "nothing but halves": ([HIGH, LOW], [f"{HIGH}{LOW}"]),
    "text as a dict, with more in it": (
        [{"type": "text", "delta": HIGH}, "", {"type": "text", "delta": LOW, "note": 1}],
        [{"type": "text", "delta": f"{HIGH}{LOW}", "note": 1}],
    ),
    "reasoning": ([reasoning(f"a{HIGH}"), reasoning(LOW)], [reasoning("a"), reasoning(f"{HIGH}{LOW}")]),
    "arguments of calls that interleave": (
        [call(0, f'"{HIGH}', id="a", name="f"), call(1, HIGH, id="b", name="g"), call(0, f'{LOW}"'), call(1, LOW)],
        [call(0, '"', id="a", name="f"), call(1, "", id="b", name="g"), call(0, f'{HIGH}{LOW}"'), call(1, HIGH + LOW)],
    ),
    "an id that comes with every delta": (
        [call(0, HIGH, id="a"), call(0, LOW, id="a")],
        [call(0, "", id="a"), call(0, HIGH + LOW, id="a")],
    ),
    "usage and custom events end nothing": (
        [HIGH, {"type": "usage"}, {"type": "custom", "name": "x", "delta": HIGH}, LOW],
        [{"type": "usage"}, {"type": "custom", "name": "x", "delta": HIGH}, HIGH + LOW],
    ),
    "a half at the end": ([f"a{HIGH}"], ["a", {"type": "text", "delta": ALONE}]),
    "two first halves": ([HIGH, f"{HIGH}", LOW], [HIGH, HIGH + LOW]),
    "another character behind a half": ([HIGH, "b"], [f"{HIGH}b"]),
    "a second half alone": ([LOW], [LOW]),
    "reasoning ends text": ([HIGH, reasoning("x"), LOW], [{"type": "text", "delta": ALONE}, reasoning("x"), LOW]),
    "text ends reasoning": ([reasoning(HIGH), "x"], [reasoning(ALONE), "x"]),
    "a call ends text": (
        [HIGH, call(0, "", id="a", name="f")],
        [{"type": "text", "delta": ALONE}, call(0, "", id="a", name="f")],
    ),
    "another call of the index ends a call": (
        [call(0, HIGH, id="a"), call(0, LOW, id="b")],
        [call(0, "", id="a"), call(0, ALONE), call(0, LOW, id="b")],
    ),
    "a result ends its call and no other": (
        [call(0, HIGH, id="a"), call(1, HIGH, id="b"), RESULT, call(1, LOW)],
        [call(0, "", id="a"), call(1, "", id="b"), call(0, ALONE), RESULT, call(1, HIGH + LOW)],
    ),
    "what is no event is for others to refuse": (
        [HIGH, {"type": []}, {"type": "text"}, {"type": "tool_call", "index": []}],
        [{"type": []}, {"type": "text"}, {"type": "tool_call", "index": []}, {"type": "text", "delta": ALONE}],
    ),
}


@pytest.mark.parametrize(("items", "expected"), CASES.values(), ids=CASES.keys())
def test_a_half_waits_for_its_other_half(items: list[Yielded], expected: list[Yielded]) -> None:
    assert joined(*items) == expected


@given(st.lists(st.sampled_from(["a", HIGH, LOW, "\U0001f600", "\0"]), max_size=12), st.data())
def test_however_a_text_is_cut_it_is_what_it_is_in_one_piece(units: list[str], data: st.DataObject) -> None:
    text = "".join(units).encode("utf-16-le", "surrogatepass")
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text) // 2))))
    pieces = [
        text[2 * first : 2 * last].decode("utf-16-le", "surrogatepass")
        for first, last in itertools.pairwise([0, *cuts, len(text) // 2])
    ]
    for kind in ("text", "reasoning"):
        found = joined(*(piece if kind == "text" else reasoning(piece) for piece in pieces))
        deltas = [item if isinstance(item, str) else item["delta"] for item in found]
        assert "".join(map(without_surrogates, deltas)) == without_surrogates("".join(pieces))


def test_what_has_no_half_is_passed_on_as_it_is() -> None:
    halves = Halves()
    for item in ("a", "", reasoning("b"), call(0, "c", id="d"), RESULT):
        (same,) = halves.join(item)
        assert same is item
