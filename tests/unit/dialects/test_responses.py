"""The dialect of OpenAI's Responses: its frames whatever the batches are, and what the official models make of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from tests.support.wire import ANSWERS, SIZES, STREAM_ID, batches, data, frames, sent, stream

from baton.dialects.responses import RESPONSES, response_of
from baton.outcome import Outcome

ROW = stream()
INPUT = {"model": "m", "input": "hi", "instructions": "be short", "tools": [], "temperature": 0.5}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
STOP = Outcome.completed("stop", usage={"input_tokens": 3, "output_tokens": 4, "total_tokens": 7, "cached_tokens": 1})


CALL = {"type": "tool_call", "index": 0, "id": "c", "name": "f", "arguments_delta": "["}


def told(*events: Any, after: int = 0) -> list[dict[str, Any]]:
    opening = RESPONSES.begin(ROW, INPUT, after)
    return data(sent(RESPONSES, opening, batches(events), after))


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return [item["type"].removeprefix("response.") for item in found]


def test_text_is_a_message_with_the_expected_events() -> None:
    found = told("Hel", "lo", STOP)
    assert kinds(found) == [
        "created",
        "queued",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [item["sequence_number"] for item in found] == list(range(11))
    assert found[7]["text"] == "Hello"
    response = Response.model_validate(found[-1]["response"])
    assert (response.id, response.status, response.output_text) == (f"resp_{STREAM_ID.hex}", "completed", "Hello")
    assert (response.model, response.instructions, response.temperature) == ("m", "be short", 0.5)
    assert response.usage is not None
    assert (response.usage.total_tokens, response.usage.input_tokens_details.cached_tokens) == (7, 1)


def test_text_ends_reasoning_and_a_call_ends_text() -> None:
    found = told(
        {"type": "reasoning", "delta": "hm"},
        "one",
        {"type": "tool_call", "index": 0, "id": "c0", "name": "f", "arguments_delta": "{}", "run_by": "client"},
        "two",
        STOP,
    )
    output = found[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "message"]
    assert output[0]["summary"] == [{"type": "summary_text", "text": "hm"}]
    assert [item["output_index"] for item in found if item["type"] == "response.output_item.added"] == [0, 1, 2, 3]
    done = [item["item"]["type"] for item in found if item["type"] == "response.output_item.done"]
    assert done == ["reasoning", "message", "function_call", "message"]


def test_counts_beyond_json_or_with_fractions_are_rounded() -> None:
    usage = {"type": "usage", "input_tokens": 2**63, "output_tokens": 2**64 - 1, "reasoning_tokens": 5.0}
    used = {"type": "usage", "input_tokens": 1, "output_tokens": 2}
    added_up = told("a", used, used, Outcome.completed("stop"))[-1]["response"]["usage"]
    assert (added_up["input_tokens"], added_up["output_tokens"], added_up["total_tokens"]) == (2, 4, 6)
    told_usage = told("a", usage, Outcome.completed("stop"))[-1]["response"]["usage"]
    assert (told_usage["input_tokens"], told_usage["total_tokens"]) == (2**53 - 1, 2**53 - 1)
    assert told_usage["output_tokens_details"] == {"reasoning_tokens": 5}


def test_calls_that_grow_in_parallel_lose_no_delta() -> None:
    def call(index: int, delta: str, **rest: str) -> dict[str, Any]:
        return {"type": "tool_call", "index": index, "arguments_delta": delta, **rest}

    found = told(
        call(0, '{"a"', id="c0", name="f"), call(1, "[", id="c1", name="g"), call(0, ":1}"), "text", call(1, "]"), STOP
    )
    calls = [item for item in found[-1]["response"]["output"] if item["type"] == "function_call"]
    assert [(item["call_id"], item["name"], item["arguments"]) for item in calls] == [
        ("c0", "f", '{"a":1}'),
        ("c1", "g", "[]"),
    ]
    whole = {item["item_id"]: item["arguments"] for item in found if item["type"].endswith("arguments.done")}
    assert whole == {item["id"]: item["arguments"] for item in calls}


def test_an_index_repeated_with_another_id_is_a_new_call() -> None:
    found = told(
        {"type": "tool_call", "index": 0, "id": "c0", "name": "f", "arguments_delta": "{}"},
        {"type": "tool_call", "index": 0, "id": "c1", "name": "g", "arguments_delta": "["},
        {"type": "tool_call", "index": 0, "arguments_delta": "]"},
        STOP,
    )
    calls = found[-1]["response"]["output"]
    assert [(call["call_id"], call["arguments"]) for call in calls] == [("c0", "{}"), ("c1", "[]")]


@pytest.mark.parametrize("run_by", [{}, {"run_by": "generator"}])
def test_a_tool_run_by_the_generator_is_a_server_item(run_by: dict[str, str]) -> None:
    result = {"type": "tool_result", "id": "c", "result": {"n": 1}}
    found = told("a", CALL | run_by, {"type": "tool_call", "index": 0, "arguments_delta": "]"}, result, "b", STOP)
    kinds = [item["type"] for item in found[-1]["response"]["output"]]
    assert kinds == ["message", "mcp_call", "message"]
    run = found[-1]["response"]["output"][1]
    assert (run["status"], run["server_label"], run["name"]) == ("completed", "baton", "f")
    assert (run["arguments"], run["output"]) == ("[]", '{"n":1}')
    assert [item["type"] for item in found if "mcp" in item["type"]].count("response.mcp_call.completed") == 1


def test_a_call_is_held_back_until_its_runner_is_known() -> None:
    held = data(sent(RESPONSES, RESPONSES.begin(ROW, INPUT), batches([CALL, "a"])))
    assert [item["item"]["type"] for item in held if item["type"] == "response.output_item.added"] == ["message"]
    found = told(CALL, "a", STOP)
    assert [item["type"] for item in found[-1]["response"]["output"]] == ["message", "function_call"]


def test_a_call_that_needs_approval_is_not_for_the_client() -> None:
    (run, message) = told(CALL, {"type": "tool_approval", "id": "c"}, STOP)[-1]["response"]["output"]
    assert (run["type"], run["status"], run["output"]) == ("mcp_call", "incomplete", None)
    assert message["content"][0]["text"] == ""


def test_the_result_of_a_call_of_an_earlier_stream_is_an_item() -> None:
    (run, _) = told({"type": "tool_result", "id": "x", "result": "dry"}, STOP)[-1]["response"]["output"]
    assert (run["type"], run["name"], run["arguments"], run["output"]) == ("mcp_call", "unknown", "", "dry")


@pytest.mark.parametrize(
    ("end", "kind", "status", "rest"),
    [
        (
            Outcome.completed("length"),
            "incomplete",
            "incomplete",
            {"incomplete_details": {"reason": "max_output_tokens"}},
        ),
        (Outcome.completed("content_filter"), "incomplete", "incomplete", {"error": None}),
        (Outcome.completed("tool_calls"), "completed", "completed", {"error": None}),
        (Outcome.cancelled(), "incomplete", "cancelled", {"incomplete_details": None}),
        (
            Outcome.failed("worker_lost", "It went away."),
            "failed",
            "failed",
            {"error": {"code": "server_error", "message": "It went away. (worker_lost)"}},
        ),
    ],
)
def test_every_end_is_sent(end: Outcome, kind: str, status: str, rest: dict[str, Any]) -> None:
    last = told("a", end)[-1]
    assert last["type"] == f"response.{kind}"
    assert last["response"]["status"] == status
    assert {name: last["response"][name] for name in rest} == rest
    assert last["response"]["output"][0]["content"][0]["text"] == "a"


def test_after_a_reset_only_an_error_is_sent() -> None:
    opening = RESPONSES.begin(ROW, INPUT)
    (batch,) = batches(["a", {"type": "reset", "reason": "worker_lost"}, "b", STOP])
    encoded = RESPONSES.encode(batch, opening.state, 0)
    assert encoded.over == "ended"
    last = data(encoded.body)[-1]
    assert (last["type"], last["code"], last["error"]["code"]) == ("error", "reset", "reset")
    assert b'"b"' not in encoded.body


def test_a_reset_before_any_frame_is_ignored() -> None:
    found = told({"type": "reset", "reason": "worker_lost"}, "b", STOP)
    assert found[-1]["response"]["output"][0]["content"][0]["text"] == "b"


def test_a_response_retrieved_after_a_reset_is_the_new_answer() -> None:
    (batch,) = batches(["a", {"type": "usage"}, {"type": "reset", "reason": "worker_lost"}, "b", STOP])
    response = response_of(ROW, INPUT, batch.lines)
    assert Response.model_validate(response).output_text == "b"
    assert len(response["output"]) == 1


def test_a_response_shows_its_progress() -> None:
    (batch,) = batches(["a", {**CALL, "run_by": "client"}])
    assert response_of(ROW, INPUT, [])["status"] == "queued"
    response = response_of(ROW, INPUT, batch.lines)
    assert (response["status"], [item["status"] for item in response["output"]]) == (
        "in_progress",
        ["completed", "in_progress"],
    )


@given(ANSWERS, SIZES, st.integers(0, 40))
def test_frames_do_not_depend_on_batches_or_the_cursor(answer: list[Any], sizes: list[int], after: int) -> None:
    whole = frames(sent(RESPONSES, RESPONSES.begin(ROW, INPUT), batches(answer)))
    cut = sent(RESPONSES, RESPONSES.begin(ROW, INPUT, after), batches(answer, sizes), after)
    assert frames(cut) == whole[after:]


@given(ANSWERS, SIZES)
def test_the_official_models_accept_every_frame(answer: list[Any], sizes: list[int]) -> None:
    found = data(sent(RESPONSES, RESPONSES.begin(ROW, INPUT), batches(answer, sizes)))
    for item in found:
        assert EVENT.validate_python(item).type == item["type"]
    assert found[-1]["response"] == response_of(ROW, INPUT, [line for part in batches(answer) for line in part.lines])


@given(ANSWERS)
def test_the_end_repeats_exactly_the_deltas(answer: list[Any]) -> None:
    found = data(sent(RESPONSES, RESPONSES.begin(ROW, INPUT), batches(answer)))
    grown: dict[str, str] = {}
    for item in found:
        if item["type"].endswith(".delta"):
            grown[item["item_id"]] = grown.get(item["item_id"], "") + item["delta"]
    for item in found[-1]["response"]["output"]:
        if item["type"] == "message":
            assert item["content"][0]["text"] == grown.get(item["id"], "")
        elif item["type"] in {"function_call", "mcp_call"}:
            assert item["arguments"] == grown.get(item["id"], "")


def test_later_events_do_not_change_a_state() -> None:
    first, second = batches(["a", {"type": "tool_call", "index": 0, "arguments_delta": "x"}, "b", STOP], [2])
    state = RESPONSES.encode(first, RESPONSES.begin(ROW, INPUT).state, 0).state
    once = RESPONSES.encode(second, state, 0).body
    assert RESPONSES.encode(second, state, 0).body == once
