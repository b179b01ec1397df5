"""The dialect of the AI SDK: which chunks events become, however they were batched and wherever a client begins."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.wire import STREAM_ID as ID
from tests.support.wire import batches, data, frames, sent

from baton.db.event_log import Batch
from baton.dialects.aisdk import AI_SDK, REPLAY, RESET, begin
from baton.dialects.aisdk_message import Earlier
from baton.events import Status
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


def approval(call_id: str) -> Event:
    return {"type": "tool_approval", "id": call_id}


def asked(call_id: str, seq: int) -> dict[str, Any]:
    approval_id = f"approval_{ID.hex}.{seq}"
    return {"type": "tool-approval-request", "approvalId": approval_id, "toolCallId": call_id}


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


def executed(call_id: str, name: str, value: Any) -> dict[str, Any]:
    return available(call_id, name, value) | {"providerExecuted": True}


def answered(call_id: str, value: Any) -> dict[str, Any]:
    return {"type": "tool-output-available", "toolCallId": call_id, "output": value, "providerExecuted": True}


def finish(reason: str, status: Status) -> dict[str, Any]:
    return {"type": "finish", "finishReason": reason, "messageMetadata": {"status": status}}


def finished(reason: str = "stop") -> list[dict[str, Any]]:
    return [{"type": "finish-step"}, finish(reason, "completed")]


def failed(code: str, message: str) -> list[dict[str, Any]]:
    known = {"status": "failed", "error": {"code": code, "message": message}}
    return [
        {"type": "message-metadata", "messageMetadata": known},
        {"type": "error", "errorText": f"{message} ({code})"},
        finish("error", "failed"),
    ]


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
            executed("c", "f", {}),
            answered("c", 1),
            argued("d", "]"),
            *part("text", 1, "a"),
            executed("d", "g", []),
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
            executed("c", "f", {}),
            answered("c", 1),
            *STEP,
            called("d", "g"),
            argued("d", "{}"),
            executed("d", "g", {}),
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
            executed("c", "f", {}),
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
    "arguments with an escaped half of a character": (
        [call(0, r'{"x":"\ud83d"}', id="c", name="f"), end()],
        [
            called("c", "f"),
            argued("c", r'{"x":"\ud83d"}'),
            {"type": "tool-input-available", "toolCallId": "c", "toolName": "f", "input": {"x": "\ufffd"}},
            *finished(),
        ],
    ),
    "a call without a name, and a piece of arguments after its result": (
        [call(3, "1"), result("call_3", 2), call(3, "4"), end()],
        [
            called("call_3", "unknown"),
            argued("call_3", "1"),
            executed("call_3", "unknown", 1),
            answered("call_3", 2),
            *finished(),
        ],
    ),
    "a result of no call": (
        [text("a"), result("c", 1), end()],
        [*part("text", 1, "a"), executed("c", "unknown", {}), answered("c", 1), *finished()],
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
    "usages, added up": (
        [{"type": "usage", "input_tokens": 2}, {"type": "usage", "input_tokens": 3, "output_tokens": 1}, end()],
        [
            {"type": "message-metadata", "messageMetadata": {"usage": {"inputTokens": 2}}},
            {"type": "message-metadata", "messageMetadata": {"usage": {"inputTokens": 5, "outputTokens": 1}}},
            *finished(),
        ],
    ),
    "a failure in mid-call": (
        [text("a"), call(0, '{"x', id="c", name="f"), Outcome.failed("tired", "The model is tired.")],
        [*part("text", 1, "a"), called("c", "f"), argued("c", '{"x'), *failed("tired", "The model is tired.")],
    ),
    "a cancellation": (
        [text("a"), Outcome.cancelled()],
        [
            *part("text", 1, "a"),
            {"type": "abort", "reason": "cancelled"},
            finish("other", "cancelled"),
        ],
    ),
    "a cancellation after a call": (
        [call(0, id="c", name="f"), result("c", 1), Outcome.cancelled()],
        [
            called("c", "f"),
            executed("c", "f", {}),
            answered("c", 1),
            {"type": "start-step"},
            {"type": "abort", "reason": "cancelled"},
            finish("other", "cancelled"),
        ],
    ),
    "a cancellation in a step after a call": (
        [call(0, id="c", name="f"), result("c", 1), text("a"), Outcome.cancelled()],
        [
            called("c", "f"),
            executed("c", "f", {}),
            answered("c", 1),
            *STEP,
            *part("text", 1, "a"),
            {"type": "abort", "reason": "cancelled"},
            finish("other", "cancelled"),
        ],
    ),
    "a tool that the generator says it runs": (
        [call(0, "{}", id="c", name="f", run_by="generator"), end()],
        [
            called("c", "f") | {"providerExecuted": True},
            argued("c", "{}"),
            executed("c", "f", {}),
            *finished(),
        ],
    ),
    "a tool that the user must allow": (
        [call(0, "{}", id="c", name="f"), approval("c"), approval("c"), approval("d"), end()],
        [called("c", "f"), argued("c", "{}"), executed("c", "f", {}), asked("c", 2), asked("c", 3), *finished()],
    ),
    "a tool that nobody can allow, for its arguments are not JSON": (
        [call(0, "{", id="c", name="f"), approval("c"), end()],
        [
            called("c", "f"),
            argued("c", "{"),
            {
                "type": "tool-input-error",
                "toolCallId": "c",
                "toolName": "f",
                "providerExecuted": True,
                "input": "{",
                "errorText": "The arguments of this call are not JSON.",
            },
            *finished(),
        ],
    ),
    "a reset before anything was said": (
        [{"type": "usage"}, {"type": "reset", "reason": "worker_lost"}, text("a"), end()],
        [{"type": "message-metadata", "messageMetadata": {"usage": {}}}, *part("text", 1, "a"), *finished()],
    ),
    "a reset in mid-answer": (
        [text("a"), {"type": "reset", "reason": "worker_lost"}, text("a"), end()],
        [*part("text", 1, "a"), *failed("reset", RESET)],
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
    error = {"type": "error", "errorText": "A part is missing. (log_damaged)"}
    assert chunks(body) == [error, {"type": "finish", "finishReason": "error"}]


def test_input_that_nests_too_deeply_is_an_error() -> None:
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
        st.builds(lambda index: approval(f"call_{index}"), INDEXES),
        st.builds(custom, st.sampled_from(["source", "x"]), st.just({"url": "u"})),
        st.just({"type": "usage", "input_tokens": 1}),
        st.just({"type": "reset", "reason": "worker_lost"}),
    ),
    max_size=20,
)
ENDS = st.sampled_from([None, end(), Outcome.cancelled(), Outcome.failed("tired", "Tired.")])


@given(EVENTS, ENDS, st.lists(st.integers(1, 4)), st.integers(0, 60))
def test_chunks_do_not_depend_on_batches_or_where_a_client_begins(
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
def test_every_frame_can_be_displayed(events: list[Event], ending: Event, sizes: list[int]) -> None:
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


def test_a_stream_that_continues_a_message_sends_only_new_parts() -> None:
    live = chunks(continuing([text("b"), end()]))
    assert live == [
        {"type": "start", "messageId": "m", "messageMetadata": {"status": None, "streamId": str(ID)}},
        {"type": "tool-output-denied", "toolCallId": "no"},
        {"type": "start-step"},
        *part("text", 3, "b"),
        *finished(),
    ]


def test_a_replay_begins_with_the_parts_of_the_message() -> None:
    replay = chunks(continuing([text("b"), end()], replay=True))
    assert replay == [
        {
            "type": "start",
            "messageId": "m",
            "messageMetadata": {"usage": {"totalTokens": 1}, "status": None, "streamId": str(ID)},
        },
        {"type": "start-step"},
        *part("reasoning", 1, "hm"),
        {"type": "text-start", "id": "earlier-3"},
        {"type": "text-delta", "id": "earlier-3", "delta": "a"},
        {"type": "text-end", "id": "earlier-3"},
        {"type": "data-weather", "id": "w", "data": 1},
        called("done", "f"),
        argued("done", '{"x":1}'),
        {"type": "tool-output-available", "toolCallId": "done", "output": 2},
        {"type": "tool-input-start", "toolCallId": "bad", "dynamic": True, "toolName": "g"},
        argued("bad", '{"x'),
        {"type": "tool-output-error", "toolCallId": "bad", "dynamic": True, "errorText": "not JSON"},
        called("no", "f"),
        argued("no", "{}"),
        {"type": "tool-output-denied", "toolCallId": "no"},
        called("yes", "f"),
        argued("yes", "{}"),
        called("own", "f") | {"providerExecuted": True},
        argued("own", "[]"),
        answered("own", None),
        {"type": "start-step"},
        *part("text", 3, "b"),
        *finished(),
    ]


def test_a_result_of_an_earlier_call_is_its_output_alone() -> None:
    """It may be of a call that the user allowed. What the model then says is in the same step, which has no call."""
    for replay in (False, True):
        found = chunks(continuing([call(0, "{}", id="yes", name="f"), result("yes", 3), text("b"), end()], replay))
        place = found.index(answered("yes", 3))
        assert found[place - 1 :] == [{"type": "start-step"}, answered("yes", 3), *part("text", 3, "b"), *finished()]


def test_a_new_call_with_the_id_of_an_answered_one_gets_an_id_of_its_own() -> None:
    events = [call(0, "{}", id="done", name="f"), call(0, " ", id="done"), result("done", 3), end()]
    assert chunks(continuing(events))[3:] == [
        called("done-2", "f"),
        argued("done-2", "{}"),
        argued("done-2", " "),
        executed("done-2", "f", {}),
        answered("done-2", 3),
        *finished(),
    ]


@given(EVENTS, ENDS, st.lists(st.integers(1, 4)), st.integers(0, 60), st.booleans())
def test_a_chunk_of_a_continued_message_has_one_number_at_its_address(
    events: list[Event], ending: Event | None, sizes: list[int], after: int, replay: bool
) -> None:
    events = [*events, *([ending] if ending else [])]
    whole = frames(continuing(events, replay))
    log = batches(events, sizes)
    for other in (not replay, replay, replay):
        dialect = REPLAY if other else AI_SDK
        rest = frames(sent(dialect, begin(ID, after, Earlier.of(MESSAGE), replay=other), log, after))
        if other == replay:
            assert [frame for frame in rest if frame != DONE] == [frame for frame in whole[after:] if frame != DONE]


MESSAGE: dict[str, Any] = {
    "id": "m",
    "metadata": {"usage": {"totalTokens": 1}, "status": "completed"},
    "parts": [
        {"type": "step-start"},
        {"type": "reasoning", "id": "reasoning-1", "text": "hm", "state": "done"},
        {"type": "text", "text": "a", "state": "done"},
        {"type": "data-weather", "id": "w", "data": 1},
        {"type": "tool-f", "toolCallId": "done", "state": "output-available", "input": {"x": 1}, "output": 2},
        {
            "type": "dynamic-tool",
            "toolName": "g",
            "toolCallId": "bad",
            "state": "output-error",
            "input": '{"x',
            "errorText": "not JSON",
        },
        {
            "type": "tool-f",
            "toolCallId": "no",
            "state": "approval-responded",
            "input": {},
            "approval": {"id": "1", "approved": False},
        },
        {
            "type": "tool-f",
            "toolCallId": "yes",
            "state": "approval-responded",
            "input": {},
            "approval": {"id": "2", "approved": True},
        },
        {
            "type": "tool-f",
            "toolCallId": "own",
            "state": "output-available",
            "input": [],
            "output": None,
            "providerExecuted": True,
        },
    ],
}


def continuing(events: list[Event], replay: bool = False) -> bytes:
    dialect = REPLAY if replay else AI_SDK
    return sent(dialect, begin(ID, 0, Earlier.of(MESSAGE), replay=replay), batches(events))
