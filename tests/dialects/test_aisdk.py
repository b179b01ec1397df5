"""The dialect of the AI SDK: which chunks events become, however they were batched and wherever a client begins."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.dialects.wire import STREAM_ID as ID
from tests.dialects.wire import batches, data, frames, sent

from baton.dialects.aisdk import AI_SDK, RESET, begin
from baton.events import Status
from baton.log import Batch
from baton.outcome import Outcome

OPENING = [
    {"type": "start", "messageId": f"msg_{ID.hex}", "messageMetadata": {"streamId": str(ID)}},
    {"type": "start-step"},
]
STEP: list[dict[str, Any]] = [{"type": "finish-step"}, {"type": "start-step"}]
DONE = b"data: [DONE]"

Event = dict[str, Any] | Outcome


def text(delta: str) -> Event:
    return {"type": "text", "delta": delta}


def reasoning(delta: str) -> Event:
    return {"type": "reasoning", "delta": delta}


def call(index: int, arguments: str = "", **named: str) -> Event:
    return {"type": "tool_call", "index": index, "arguments_delta": arguments, **named}


def result(call_id: str, value: Any) -> Event:
    return {"type": "tool_result", "id": call_id, "result": value}


def custom(name: str, data: Any, **fields: Any) -> Event:
    return {"type": "custom", "name": name, "data": data, **fields}


def end(reason: str = "stop") -> Event:
    return Outcome.completed(reason)


def part(kind: str, number: int, *deltas: str) -> list[dict[str, Any]]:
    named = {"id": f"{kind}-{number}"}
    middle = [{"type": f"{kind}-delta", **named, "delta": delta} for delta in deltas]
    return [{"type": f"{kind}-start", **named}, *middle, {"type": f"{kind}-end", **named}]


def called(call_id: str, name: str) -> dict[str, Any]:
    return {"type": "tool-input-start", "toolCallId": call_id, "toolName": name}


def argued(call_id: str, delta: str) -> dict[str, Any]:
    return {"type": "tool-input-delta", "toolCallId": call_id, "inputTextDelta": delta}


def available(call_id: str, name: str, value: Any) -> dict[str, Any]:
    return {"type": "tool-input-available", "toolCallId": call_id, "toolName": name, "input": value}


def answered(call_id: str, value: Any) -> dict[str, Any]:
    return {"type": "tool-output-available", "toolCallId": call_id, "output": value}


def finish(reason: str, status: Status) -> dict[str, Any]:
    return {"type": "finish", "finishReason": reason, "messageMetadata": {"status": status}}


def finished(reason: str = "stop") -> list[dict[str, Any]]:
    return [{"type": "finish-step"}, finish(reason, "completed")]


def failed(message: str) -> list[dict[str, Any]]:
    status = {"type": "message-metadata", "messageMetadata": {"status": "failed"}}
    return [status, {"type": "error", "errorText": message}, finish("error", "failed")]


CASES: dict[str, tuple[list[Event], list[dict[str, Any]]]] = {
    "nothing yet": ([], []),
    "text": ([text("a"), text("\u2028"), end()], [*part("text", 1, "a", "\u2028"), *finished()]),
    "nothing but an end": ([end()], finished()),
    "reasoning, then text, then reasoning": (
        [reasoning("r"), text("a"), reasoning("s"), end("length")],
        [*part("reasoning", 1, "r"), *part("text", 2, "a"), *part("reasoning", 3, "s"), *finished("length")],
    ),
    "a call that the page is to answer": (
        [text("a"), call(0, id="c", name="f"), call(0, '{"x":'), call(0, "1}"), end("tool_calls")],
        [
            *part("text", 1, "a"),
            called("c", "f"),
            argued("c", '{"x":'),
            argued("c", "1}"),
            available("c", "f", {"x": 1}),
            *finished("tool-calls"),
        ],
    ),
    "calls that interleave": (
        [
            call(0, "{", id="c", name="f"),
            call(1, "[", id="d", name="g"),
            call(0, "}"),
            result("c", 1),
            call(1, "]"),
            text("a"),
            result("d", None),
            text("b"),
            end(),
        ],
        [
            called("c", "f"),
            argued("c", "{"),
            called("d", "g"),
            argued("d", "["),
            argued("c", "}"),
            available("c", "f", {}),
            answered("c", 1),
            argued("d", "]"),
            *part("text", 1, "a"),
            available("d", "g", []),
            answered("d", None),
            *STEP,
            *part("text", 2, "b"),
            *finished(),
        ],
    ),
    "an agent that counts its calls from 0 in every step": (
        [call(0, id="c", name="f"), result("c", 1), call(0, "{}", id="d", name="g"), result("d", 2), text("a"), end()],
        [
            called("c", "f"),
            available("c", "f", {}),
            answered("c", 1),
            *STEP,
            called("d", "g"),
            argued("d", "{}"),
            available("d", "g", {}),
            answered("d", 2),
            *STEP,
            *part("text", 1, "a"),
            *finished(),
        ],
    ),
    "text that goes on around a result": (
        [call(0, id="c", name="f"), text("a"), result("c", 1), text("b"), end()],
        [
            called("c", "f"),
            *part("text", 1, "a"),
            available("c", "f", {}),
            answered("c", 1),
            *STEP,
            *part("text", 2, "b"),
            *finished(),
        ],
    ),
    "arguments that are not JSON": (
        [call(0, '{"x', id="c", name="f"), end("length")],
        [
            called("c", "f"),
            argued("c", '{"x'),
            {
                "type": "tool-input-error",
                "toolCallId": "c",
                "toolName": "f",
                "input": '{"x',
                "errorText": "The arguments of this call are not JSON.",
            },
            *finished("length"),
        ],
    ),
    "a call without a name, and a piece of arguments after its result": (
        [call(3, "1"), result("call_3", 2), call(3, "4"), end()],
        [
            called("call_3", "unknown"),
            argued("call_3", "1"),
            available("call_3", "unknown", 1),
            answered("call_3", 2),
            *finished(),
        ],
    ),
    "a result of no call": (
        [text("a"), result("c", 1), end()],
        [*part("text", 1, "a"), available("c", "unknown", {}), answered("c", 1), *finished()],
    ),
    "sources and data": (
        [
            text("a"),
            custom("source", {"url": "https://a.test", "title": "A", "id": 7}),
            custom("source", {"url": "https://b.test"}),
            custom("source", "no address"),
            custom("weather", {"high": 3}, id="w"),
            text("b"),
            end("other"),
        ],
        [
            *part("text", 1, "a")[:2],
            {"type": "source-url", "sourceId": "7", "url": "https://a.test", "title": "A"},
            {"type": "source-url", "sourceId": "https://b.test", "url": "https://b.test"},
            {"type": "data-source", "data": "no address"},
            {"type": "data-weather", "id": "w", "data": {"high": 3}},
            *part("text", 1, "b")[1:],
            *finished("other"),
        ],
    ),
    "usage": (
        [text("a"), {"type": "usage", "input_tokens": 2, "total_tokens": 3, "model": "m"}, end("content_filter")],
        [
            *part("text", 1, "a")[:2],
            {"type": "message-metadata", "messageMetadata": {"usage": {"inputTokens": 2, "totalTokens": 3}}},
            *part("text", 1)[1:],
            *finished("content-filter"),
        ],
    ),
    "a failure in mid-call": (
        [text("a"), call(0, '{"x', id="c", name="f"), Outcome.failed("tired", "The model is tired.")],
        [*part("text", 1, "a"), called("c", "f"), argued("c", '{"x'), *failed("The model is tired.")],
    ),
    "a cancellation": (
        [text("a"), Outcome.cancelled()],
        [
            *part("text", 1, "a"),
            {"type": "abort", "reason": "cancelled"},
            finish("other", "cancelled"),
        ],
    ),
    "a cancellation after a result": (
        [call(0, id="c", name="f"), result("c", 1), Outcome.cancelled()],
        [
            called("c", "f"),
            available("c", "f", {}),
            answered("c", 1),
            {"type": "start-step"},
            {"type": "abort", "reason": "cancelled"},
            finish("other", "cancelled"),
        ],
    ),
    "a reset before anything was said": (
        [{"type": "usage"}, {"type": "reset", "reason": "worker_lost"}, text("a"), end()],
        [{"type": "message-metadata", "messageMetadata": {"usage": {}}}, *part("text", 1, "a"), *finished()],
    ),
    "a reset in mid-answer": (
        [text("a"), {"type": "reset", "reason": "worker_lost"}, text("a"), end()],
        [*part("text", 1, "a"), *failed(RESET)],
    ),
}


@pytest.mark.parametrize(("events", "expected"), CASES.values(), ids=CASES.keys())
def test_events_become_chunks(events: list[Event], expected: list[dict[str, Any]]) -> None:
    body = read(batches(events))
    ended = bool(expected) and expected[-1]["type"] == "finish"
    assert body.endswith(DONE + b"\n\n") == ended
    assert chunks(body) == OPENING + expected


def test_a_log_with_a_gap_is_an_error_and_an_end_whose_status_is_unknown() -> None:
    body, over = AI_SDK.broken(begin(ID).state, "log_damaged", "A part is missing.")
    assert over == "ended"
    error = {"type": "error", "errorText": "A part is missing."}
    assert chunks(body) == [error, {"type": "finish", "finishReason": "error"}]


def test_input_that_nests_too_deeply_to_be_told_is_an_error() -> None:
    deep = "[" * 300 + "]" * 300
    told = chunks(read(batches([call(0, deep, id="c", name="f"), end()])))
    assert [chunk["type"] for chunk in told[4:]] == ["tool-input-error", "finish-step", "finish"]


DELTAS = st.text("ab\n\u2028", min_size=1, max_size=3)
INDEXES = st.integers(0, 2)
EVENTS: st.SearchStrategy[list[Event]] = st.lists(
    st.one_of(
        DELTAS.map(text),
        DELTAS.map(reasoning),
        st.builds(call, INDEXES, st.sampled_from(["", "{", "}", "1"])),
        st.builds(lambda index: result(f"call_{index}", 1), INDEXES),
        st.builds(custom, st.sampled_from(["source", "x"]), st.just({"url": "u"})),
        st.just({"type": "usage", "input_tokens": 1}),
        st.just({"type": "reset", "reason": "worker_lost"}),
    ),
    max_size=20,
)
ENDS = st.sampled_from([None, end(), Outcome.cancelled(), Outcome.failed("tired", "Tired.")])


@given(EVENTS, ENDS, st.lists(st.integers(1, 4)), st.integers(0, 60))
def test_chunks_are_the_same_however_events_are_batched_and_wherever_a_client_begins(
    events: list[Event], ending: Event | None, sizes: list[int], after: int
) -> None:
    events = [*events, *([ending] if ending else [])]
    whole = frames(read(batches(events)))
    log = batches(events, sizes)
    for _ in ("encoded for the first time", "kept with the batches"):
        assert frames(read(log)) == whole
        rest = frames(read(log, after))
        assert [frame for frame in rest if frame != DONE] == [frame for frame in whole[after:] if frame != DONE]
        if len([frame for frame in whole if frame != DONE]) > after:
            assert (DONE in rest) == (DONE in whole)


@given(EVENTS, st.lists(st.integers(1, 4)))
def test_a_state_is_never_changed(events: list[Event], sizes: list[int]) -> None:
    log = [*batches(events, sizes), *batches([end()])]
    states, told = [begin(ID).state], []
    for batch in log:
        encoded = AI_SDK.encode(batch, states[-1], 0)
        states.append(encoded.state)
        told.append(encoded.body)
    again = [AI_SDK.encode(batch, state, 0).body for batch, state in zip(log, states, strict=False)]
    assert again == told


@given(EVENTS, ENDS.filter(bool), st.lists(st.integers(1, 4)))
def test_what_is_told_can_be_shown(events: list[Event], ending: Event, sizes: list[int]) -> None:
    """Parts begin before they go on and end once; a call's input is told before its result; one finish is the last."""
    told = chunks(read(batches([*events, ending], sizes)))
    open_parts: set[str] = set()
    open_calls: set[str] = set()
    known_calls: set[str] = set()
    for chunk, after in zip(told, [*told[1:], {}], strict=True):
        kind, part_id, call_id = chunk["type"], chunk.get("id", ""), chunk.get("toolCallId", "")
        if kind in {"text-start", "reasoning-start"}:
            assert not open_parts
            open_parts.add(part_id)
        elif kind in {"text-delta", "reasoning-delta"}:
            assert part_id in open_parts
        elif kind in {"text-end", "reasoning-end"}:
            open_parts.remove(part_id)
        elif kind == "tool-input-start":
            assert call_id not in known_calls
            open_calls.add(call_id)
        elif kind == "tool-input-delta":
            assert call_id in open_calls
        elif kind in {"tool-input-available", "tool-input-error"}:
            open_calls.discard(call_id)
            known_calls.add(call_id)
        elif kind == "tool-output-available":
            assert call_id in known_calls
        elif kind == "start-step":
            # The last step of a stopped answer is empty: no call continues in it.
            assert not open_calls or after["type"] == "abort"
    assert not open_parts
    assert [chunk["type"] for chunk in told].index("finish") == len(told) - 1


def read(found: list[Batch], after: int = 0) -> bytes:
    return sent(AI_SDK, begin(ID, after), found, after)


def chunks(body: bytes) -> list[dict[str, Any]]:
    return [chunk for chunk in data(body) if chunk != "[DONE]"]
