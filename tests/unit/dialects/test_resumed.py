"""`resumed`: native clients see that another worker continues the answer. In all other dialects nothing shows it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.wire import ANSWERS, RESUMED, SIZES, STREAM_ID, batches, encoded, sent, stream

from baton.dialects import agui, agui_events, aisdk, native
from baton.dialects.aisdk_data import AI_SDK_DATA
from baton.dialects.aisdk_message import Earlier
from baton.dialects.anthropic import MESSAGES
from baton.dialects.chat import CHAT
from baton.dialects.langgraph import MODES, LangGraph, LangGraphResult, run_of
from baton.dialects.protocol import Dialect, Encoded
from baton.dialects.responses import RESPONSES, response_of
from baton.dialects.text import START, TEXT
from baton.outcome import Outcome
from baton.snapshot import Snapshot

ROW = stream()
PAGE = Earlier.of({"id": "m1", "role": "assistant", "parts": [{"type": "text", "text": "before"}]})
RUN = agui_events.Run("t", "r", STREAM_ID.hex, b"[]")
GRAPH = LangGraph(run_of(ROW, "t"), MODES)
RESULT = LangGraphResult(run_of(ROW, "t"))
# Each with how it begins after a number of frames; the number is 0 where clients cannot resume.
CURSORS: dict[str, Any] = {
    "responses": (RESPONSES, lambda after: RESPONSES.begin(ROW, {}, after)),
    "aisdk": (aisdk.AI_SDK, lambda after: aisdk.begin(STREAM_ID, after)),
    "langgraph": (GRAPH, lambda after: GRAPH.begin([], after)),
    "agui": (agui.AG_UI, lambda _: agui.begin(RUN, str(STREAM_ID))),
    "aisdk, continued": (aisdk.AI_SDK, lambda after: aisdk.begin(STREAM_ID, after, PAGE)),
    "aisdk, replayed": (aisdk.REPLAY, lambda after: aisdk.begin(STREAM_ID, after, PAGE, replay=True)),
}
WHOLE: dict[str, Any] = {
    "chat": (CHAT, lambda _: CHAT.begin(ROW, {"stream_options": {"include_usage": True}})),
    "anthropic": (MESSAGES, lambda _: MESSAGES.begin(ROW, "whole")),
    "aisdk 3": (AI_SDK_DATA["v3"], lambda _: AI_SDK_DATA["v3"].begin(STREAM_ID.hex)),
    "aisdk 4": (AI_SDK_DATA["v4"], lambda _: AI_SDK_DATA["v4"].begin(STREAM_ID.hex)),
    "langgraph, waiting": (RESULT, lambda _: RESULT.begin([])),
    "text": (TEXT, lambda _: START),
}
PLACES = st.lists(st.integers(0, 12), min_size=1, max_size=3)
RESET = {"type": "reset", "reason": "worker_left"}
RESTARTED = ANSWERS.map(lambda answer: [*answer[:1], RESET, *answer[1:]] if len(answer) > 1 else answer)


def continued(answer: list[Any], places: list[int]) -> list[Any]:
    """The same answer, continued by another worker before some of its events."""
    found = [event for event in answer if event != RESUMED]
    for place in sorted(places, reverse=True):
        found.insert(min(place, len(found) - 1), RESUMED)
    return found


def without(events: list[Any]) -> list[Any]:
    return [event for event in events if event != RESUMED]


@pytest.mark.parametrize("name", [*CURSORS, *WHOLE])
@settings(max_examples=30)
@given(ANSWERS | RESTARTED, PLACES, SIZES, st.integers(0, 30))
def test_no_byte_of_another_dialect_shows_it(
    name: str, answer: list[Any], places: list[int], sizes: list[int], after: int
) -> None:
    dialect, begin = (CURSORS | WHOLE)[name]
    after = after if name in CURSORS else 0
    if name == "agui":
        # The id of an interrupt has the number of its question.
        answer = [event for event in answer if isinstance(event, Outcome | str) or event["type"] != "tool_approval"]
    events = continued(answer, places)
    assert read(dialect, begin(after), events, sizes, after) == read(dialect, begin(after), without(events), (), after)


def read(dialect: Dialect[Any], begun: Encoded[Any], events: list[Any], sizes: Any, after: int) -> bytes:
    return sent(dialect, begun, batches(events, sizes), after)


@given(ANSWERS, PLACES)
def test_the_answer_as_a_whole_does_not_show_it(answer: list[Any], places: list[int]) -> None:
    events = continued(answer, places)
    lines, others = ([encoded(event).decode() for event in some] for some in (events, without(events)))
    assert Snapshot.of(lines, 1) == Snapshot.of(others, 1)
    assert response_of(ROW, {}, lines) == response_of(ROW, {}, others)


def test_native_clients_see_it_and_the_answer_view_keeps_the_numbers() -> None:
    log = batches(["a", RESUMED, "b"])
    block = b'id: 2\ndata: {"type":"resumed","run":2,"reason":"worker_lost"}\n\n'
    whole = sent(native.FULL, native.START, log)
    assert block in whole
    assert sent(native.ANSWER, native.START, log) == whole.replace(block, b"")
    assert sent(native.FULL, native.begin(1), log, 1).startswith(block)
