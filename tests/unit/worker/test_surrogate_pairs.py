"""Characters that are yielded as two surrogates, by pure functions. `test_run.py` tests what the log gets of them."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import InvalidEvent
from baton.events import without_surrogates
from baton.generators import Yielded
from baton.worker.surrogate_pairs import SurrogateJoiner
from baton.worker.tool_calls import ToolCalls

HIGH, LOW = "\ud83d", "\ude00"
ALONE = "\ufffd"


def reasoning(delta: str) -> dict[str, Any]:
    return {"type": "reasoning", "delta": delta}


def call(index: int, delta: str, **named: str) -> dict[str, Any]:
    return {"type": "tool_call", "index": index, **named, "arguments_delta": delta}


def joined(*items: Yielded) -> list[Yielded]:
    calls = ToolCalls()
    joiner = SurrogateJoiner(calls)
    found: list[Yielded] = []
    for item in items:
        for whole in joiner.join(item):
            found.append(whole)
            note(calls, whole)
    return found + list(joiner.rest())


def note(calls: ToolCalls, item: Yielded) -> None:
    """Note a tool call as a run does, which refuses invalid ones."""
    if isinstance(item, dict) and item.get("type") == "tool_call" and isinstance(item.get("index"), int):
        with contextlib.suppress(InvalidEvent):
            calls.note({"name": "f", **item})


RESULT = {"type": "tool_result", "id": "a", "result": 1}
CASES: dict[str, tuple[list[Yielded], list[Yielded]]] = {
    "text": ([f"a{HIGH}", f"{LOW}b"], ["a", f"{HIGH}{LOW}b"]),
    "nothing but surrogates": ([HIGH, LOW], [f"{HIGH}{LOW}"]),
    "text as a dict with another field": (
        [{"type": "text", "delta": HIGH}, "", {"type": "text", "delta": LOW, "note": 1}],
        [{"type": "text", "delta": f"{HIGH}{LOW}", "note": 1}],
    ),
    "reasoning": ([reasoning(f"a{HIGH}"), reasoning(LOW)], [reasoning("a"), reasoning(f"{HIGH}{LOW}")]),
    "arguments of interleaved calls": (
        [call(0, f'"{HIGH}', id="a", name="f"), call(1, HIGH, id="b", name="g"), call(0, f'{LOW}"'), call(1, LOW)],
        [call(0, '"', id="a", name="f"), call(1, "", id="b", name="g"), call(0, f'{HIGH}{LOW}"'), call(1, HIGH + LOW)],
    ),
    "an id with every delta": (
        [call(0, HIGH, id="a"), call(0, LOW, id="a")],
        [call(0, "", id="a"), call(0, HIGH + LOW, id="a")],
    ),
    "usage and custom events end nothing": (
        [HIGH, {"type": "usage"}, {"type": "custom", "name": "x", "delta": HIGH}, LOW],
        [{"type": "usage"}, {"type": "custom", "name": "x", "delta": HIGH}, HIGH + LOW],
    ),
    "a high surrogate at the end": ([f"a{HIGH}"], ["a", {"type": "text", "delta": ALONE}]),
    "two high surrogates": ([HIGH, f"{HIGH}", LOW], [HIGH, HIGH + LOW]),
    "another character after a high surrogate": ([HIGH, "b"], [f"{HIGH}b"]),
    "a low surrogate alone": ([LOW], [LOW]),
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
    "invalid events are passed on": (
        [HIGH, {"type": []}, {"type": "text"}, {"type": "tool_call", "index": []}],
        [{"type": []}, {"type": "text"}, {"type": "tool_call", "index": []}, {"type": "text", "delta": ALONE}],
    ),
}


@pytest.mark.parametrize(("items", "expected"), CASES.values(), ids=CASES.keys())
def test_a_high_surrogate_waits_for_the_low_one(items: list[Yielded], expected: list[Yielded]) -> None:
    assert joined(*items) == expected


@given(st.lists(st.sampled_from(["a", HIGH, LOW, "\U0001f600", "\0"]), max_size=12), st.data())
def test_a_text_is_the_same_however_it_is_split(units: list[str], data: st.DataObject) -> None:
    text = "".join(units).encode("utf-16-le", "surrogatepass")
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text) // 2))))
    chunks = [
        text[2 * first : 2 * last].decode("utf-16-le", "surrogatepass")
        for first, last in itertools.pairwise([0, *cuts, len(text) // 2])
    ]
    for kind in ("text", "reasoning"):
        found = joined(*(chunk if kind == "text" else reasoning(chunk) for chunk in chunks))
        deltas = [item if isinstance(item, str) else item["delta"] for item in found]
        assert "".join(map(without_surrogates, deltas)) == without_surrogates("".join(chunks))


def test_events_without_surrogates_are_passed_on_unchanged() -> None:
    joiner = SurrogateJoiner(ToolCalls())
    for item in ("a", "", reasoning("b"), call(0, "c", id="d"), RESULT):
        (same,) = joiner.join(item)
        assert same is item
