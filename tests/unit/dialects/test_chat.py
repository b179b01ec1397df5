"""The dialect of OpenAI's Chat Completions, and what its official models make of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from tests.support.wire import ANSWERS, SIZES, STREAM_ID, batches, data, sent, stream

from baton.dialects.chat import CHAT, completion_of
from baton.dialects.protocol import Reader
from baton.outcome import Outcome
from baton.snapshot import Snapshot, ToolCall

ROW = stream(status="completed", finish_reason="tool_calls")
STOP = Outcome.completed("stop", usage={"input_tokens": 3, "output_tokens": 4})


def told(*events: Any, **given: Any) -> list[Any]:
    return data(sent(CHAT, CHAT.begin(ROW, given), batches(events)))


def test_an_answer_is_chunks_and_done() -> None:
    *chunks, done = told({"type": "reasoning", "delta": "hm"}, "Hel", "lo", STOP)
    assert done == "[DONE]"
    assert {(chunk["id"], chunk["model"]) for chunk in chunks} == {(f"chatcmpl-{STREAM_ID.hex}", "g")}
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm"},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["stop"]


def test_requested_usage_comes_last() -> None:
    *chunks, usage, _ = told("a", STOP, stream_options={"include_usage": True})
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 7
    assert all(chunk["usage"] is None for chunk in chunks)


def test_usages_are_summed_if_the_end_has_none() -> None:
    """Ends that the release before wrote without a worker have none."""
    used = {"type": "usage", "input_tokens": 1, "output_tokens": 2}
    *_, usage, _ = told("a", used, used, Outcome.completed("stop"), stream_options={"include_usage": True})
    assert usage["usage"]["total_tokens"] == 6


def test_tool_calls_are_sent_as_deltas() -> None:
    found = told(
        {"type": "tool_call", "index": 0, "id": "c", "name": "f", "arguments_delta": "", "run_by": "client"},
        {"type": "tool_call", "index": 0, "arguments_delta": "{}"},
        Outcome.completed("tool_calls"),
    )
    assert [chunk["choices"][0]["delta"].get("tool_calls") for chunk in found[1:3]] == [
        [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": "{}"}}],
    ]
    assert found[3]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (Outcome.failed("idle_timeout", "Silent."), "idle_timeout"),
        (Outcome.cancelled(), "cancelled"),
        ({"type": "reset", "reason": "worker_lost"}, "reset"),
    ],
)
def test_an_incomplete_end_is_an_error_and_a_cut(end: Any, code: str) -> None:
    found = told("a", end)
    assert found[-1]["error"]["code"] == code
    assert "[DONE]" not in found
    reader = Reader(CHAT, CHAT.begin(ROW, {}), 0)
    reader.read(batches(["a", end]))
    assert reader.over == "cut"


def test_calls_are_numbered_in_the_order_of_their_start() -> None:
    def call(index: int, delta: str, **rest: str) -> dict[str, Any]:
        return {"type": "tool_call", "index": index, "arguments_delta": delta, **rest}

    def begun(index: int, delta: str, name: str) -> dict[str, Any]:
        return call(index, delta, id=name, run_by="client")

    found = told(begun(0, "{", "a"), call(0, "}"), begun(0, "[", "b"), begun(3, "1", "c"), call(0, "]"), STOP)
    calls = [chunk["choices"][0]["delta"]["tool_calls"][0] for chunk in found[1:6]]
    assert [(item["index"], item["function"]["arguments"]) for item in calls] == [
        (0, "{"),
        (0, "}"),
        (1, "["),
        (2, "1"),
        (1, "]"),
    ]


CALL = {"type": "tool_call", "index": 0, "id": "c", "name": "f", "arguments_delta": "{"}
REST = {"type": "tool_call", "index": 0, "arguments_delta": "}"}
WHOLE = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("events", "calls", "reason"),
    [
        ([CALL, REST, "a"], [WHOLE], "tool_calls"),
        ([CALL, REST, "a", {"type": "tool_result", "id": "c", "result": 1}, REST], [], "stop"),
        ([CALL, REST, {"type": "tool_approval", "id": "c"}], [], "stop"),
        ([CALL | {"run_by": "generator"}, REST], [], "stop"),
        ([CALL, {"type": "reset", "reason": "worker_lost"}, CALL, REST], [WHOLE], "tool_calls"),
        (
            [CALL | {"id": "d", "run_by": "client"}, CALL, {"type": "tool_result", "id": "c"}],
            [{"index": 0, "id": "d", "type": "function", "function": {"name": "f", "arguments": "{"}}],
            "tool_calls",
        ),
    ],
)
@pytest.mark.parametrize("said", ["stop", "tool_calls", "length"])
def test_only_the_clients_calls_are_sent_and_the_reason_agrees(
    events: list[Any], calls: list[Any], reason: str, said: str
) -> None:
    *chunks, _ = told(*events, Outcome.completed(said))
    found = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert found == calls
    assert chunks[-1]["choices"][0]["finish_reason"] == ("length" if said == "length" else reason)
    lines = [line for batch in batches(events) for line in batch.lines]
    (choice,) = completion_of(stream(status="completed", finish_reason=said), Snapshot.of(lines, 1))["choices"]
    whole = [{name: call[name] for name in ("id", "type", "function")} for call in calls]
    assert choice["message"].get("tool_calls", []) == whole
    assert choice["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"]


def test_a_reset_before_any_frame_is_ignored() -> None:
    assert told({"type": "reset", "reason": "worker_lost"}, "b", STOP)[-1] == "[DONE]"


@given(ANSWERS, SIZES)
def test_the_official_models_accept_every_chunk(answer: list[Any], sizes: list[int]) -> None:
    whole = sent(CHAT, CHAT.begin(ROW, {}), batches(answer))
    assert sent(CHAT, CHAT.begin(ROW, {}), batches(answer, sizes)) == whole
    for item in data(whole):
        if isinstance(item, dict) and "error" not in item:
            ChatCompletionChunk.model_validate(item)


def test_the_official_models_accept_a_complete_completion() -> None:
    call: ToolCall = {"id": "c", "name": "f", "arguments": "{}"}
    snapshot = Snapshot(3, "hi", "hm", [call], usage={"input_tokens": 1, "output_tokens": 2})
    completion = ChatCompletion.model_validate(completion_of(ROW, snapshot))
    (choice,) = completion.choices
    assert (choice.message.content, choice.finish_reason) == ("hi", "tool_calls")
    assert choice.message.tool_calls is not None
    assert choice.message.tool_calls[0].id == "c"
    assert completion.usage is not None
    assert completion.usage.total_tokens == 3
