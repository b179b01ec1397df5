"""One stream in a worker: what its generator yields, raises or ignores, and what the log gets of it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx2
import openai
import pytest
from tests.support.logbook import (
    DEADLINE_SECONDS,
    answer,
    connected,
    ended,
    events,
    queue,
    row,
    text,
    until,
    until_tail,
    working,
)

from baton.db import event_log, stream_creation, stream_ending
from baton.db.event_log import Append
from baton.db.postgres import pool
from baton.db.stream_creation import NewStream
from baton.db.streams import Stream
from baton.errors import GENERATOR_FAULT, GenerationError
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded
from baton.worker import run

Found = tuple[Stream, list[dict[str, Any]]]


async def outcome(dsn: str, generator: Any, **changes: Any) -> Found:
    """Run a stream to its end."""
    stream_id = await queue(dsn)
    async with working(dsn, generator, **changes) as worker, connected(dsn) as connection:
        stream = await ended(connection, stream_id)
        await until(lambda: not worker.slots.runs)
        return stream, await events(connection, stream_id)


async def cancel(dsn: str, stream: Any) -> str | None:
    async with pool(dsn, size=1, timeout_seconds=10) as opened:
        return await stream_ending.request_cancel(opened, stream)


async def test_text_and_events_keep_their_order(dsn: str) -> None:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "reasoning", "delta": "hm"}
        yield "a\0b \ud83d\ude00 \ud800"
        yield {"type": "tool_call", "index": 0, "id": "t", "name": "f", "arguments_delta": "{}"}
        yield {"type": "tool_result", "id": "t", "result": [1, None]}
        yield {"type": "custom", "name": "n", "delta": "", "data": {"x": 1.5}}
        yield {"type": "usage", "input_tokens": 3, "output_tokens": 4, "note": "x"}
        yield {"type": "finish", "finish_reason": "length"}

    stream, found = await outcome(dsn, generate)
    assert found[:-1] == [
        {"type": "reasoning", "delta": "hm"},
        {"type": "text", "delta": "a\0b \U0001f600 "},
        {"type": "text", "delta": "\ufffd"},
        {"type": "tool_call", "index": 0, "id": "t", "name": "f", "arguments_delta": "{}"},
        {"type": "tool_result", "id": "t", "result": [1, None]},
        {"type": "custom", "name": "n", "delta": "", "data": {"x": 1.5}},
        {"type": "usage", "input_tokens": 3, "output_tokens": 4, "note": "x"},
    ]
    assert (stream.status, stream.finish_reason, stream.usage) == (
        "completed",
        "length",
        {"input_tokens": 3, "output_tokens": 4},
    )


async def test_the_usage_of_all_model_calls_is_summed(dsn: str) -> None:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "usage", "input_tokens": 3, "output_tokens": 4, "cached_tokens": 1}
        yield "a"
        yield {"type": "usage", "input_tokens": 10, "output_tokens": 20, "vendor_credits": 0.5}

    stream, found = await outcome(dsn, generate)
    used = {"input_tokens": 13, "output_tokens": 24, "cached_tokens": 1, "vendor_credits": 0.5}
    assert stream.usage == found[-1]["usage"] == used
    assert stream.usage_by_attempt is None
    assert "usage_by_attempt" not in found[-1]


async def test_a_failed_or_cancelled_stream_has_its_usage_so_far(dsn: str) -> None:
    async def fail(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "usage", "total_tokens": 3}
        yield {"type": "usage", "total_tokens": 4}
        raise GenerationError("provider_timeout", "The model provider did not answer in time.")

    async def wait(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "usage", "total_tokens": 3}
        yield {"type": "usage", "total_tokens": 4}
        await asyncio.Event().wait()

    failed, _ = await outcome(dsn, fail)
    stream_id = await queue(dsn)
    async with working(dsn, wait), connected(dsn) as connection:
        await until_tail(connection, stream_id, 2)
        await cancel(dsn, stream_id)
        cancelled = await ended(connection, stream_id)
    assert (failed.status, failed.usage) == ("failed", {"total_tokens": 7})
    assert (cancelled.status, cancelled.usage) == ("cancelled", {"total_tokens": 7})


async def test_a_character_yielded_as_two_surrogates_is_whole_in_the_log(dsn: str) -> None:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "reasoning", "delta": "\ud83d"}
        yield {"type": "reasoning", "delta": "\ude00"}
        yield "a\ud83d"
        yield "\ude00b"
        yield {"type": "tool_call", "index": 0, "id": "t", "name": "f", "arguments_delta": '"\ud83d'}
        yield {"type": "tool_call", "index": 0, "arguments_delta": '\ude00"'}
        yield {"type": "tool_result", "id": "t", "result": {"\ud83d": ["\ude00", "\0"]}}
        yield "c\ud83d"

    _, found = await outcome(dsn, generate)
    assert found[:-1] == [
        {"type": "reasoning", "delta": "\U0001f600"},
        {"type": "text", "delta": "a"},
        {"type": "text", "delta": "\U0001f600b"},
        {"type": "tool_call", "index": 0, "id": "t", "name": "f", "arguments_delta": '"'},
        {"type": "tool_call", "index": 0, "arguments_delta": '\U0001f600"'},
        {"type": "tool_result", "id": "t", "result": {"\ufffd": ["\ufffd", "\0"]}},
        {"type": "text", "delta": "c"},
        {"type": "text", "delta": "\ufffd"},
    ]


@pytest.mark.parametrize("error", [GenerationError("x", "y"), asyncio.CancelledError(), RuntimeError()])
async def test_a_lone_surrogate_is_replaced_before_the_end(dsn: str, error: BaseException) -> None:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield "\ud83d"
        raise error

    stream, found = await outcome(dsn, generate)
    assert (stream.status, text(found)) == ("failed", "\ufffd")


async def test_the_replacement_of_a_lone_surrogate_keeps_to_the_limit(dsn: str) -> None:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield "a\ud83d"

    stream, found = await outcome(dsn, generate, max_stream_events=1)
    assert (stream.error_code, text(found)) == ("too_many_events", "a")


@pytest.mark.parametrize(
    "call",
    [
        {"index": 0},
        {"index": 0, "id": "t"},
        {"index": 0, "id": 5, "name": "f"},
        {"index": -1, "id": "t", "name": "f"},
        {"index": True, "id": "t", "name": "f"},
    ],
)
async def test_a_surrogate_in_an_invalid_event_ends_the_stream(dsn: str, call: dict[str, Any]) -> None:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "tool_call", **call, "arguments_delta": "\ud83d"}

    stream, found = await outcome(dsn, generate)
    assert (stream.error_code, len(found)) == ("invalid_event", 1)


async def test_timings_count_the_tokens(dsn: str) -> None:
    stream, found = await outcome(dsn, answer)
    timings = found[-1]["timings"]
    assert (stream.finish_reason, timings["tokens"], stream.tokens) == ("stop", 3, 3)
    assert 0 <= timings["time_to_first_token_seconds"] <= timings["duration_seconds"]
    assert timings["duration_seconds"] == pytest.approx(stream.duration_seconds, abs=1e-5)


async def test_empty_deltas_make_no_event(dsn: str) -> None:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield ""
        yield {"type": "text", "delta": ""}
        yield "a"
        yield {"type": "reasoning", "delta": ""}

    stream, found = await outcome(dsn, generate)
    assert ([event["type"] for event in found], stream.tokens) == (["text", "done"], 1)


async def test_a_generator_that_yields_nothing_completes(dsn: str) -> None:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        if False:
            yield ""

    stream, found = await outcome(dsn, generate)
    assert (stream.status, stream.tokens, stream.time_to_first_token_seconds, len(found)) == ("completed", 0, None, 1)


async def test_the_generator_gets_the_fields_of_the_create(dsn: str) -> None:
    seen: list[GenerationRequest] = []

    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        seen.append(request)
        yield "a"

    async with pool(dsn, size=1, timeout_seconds=10) as opened:
        stream, _ = await stream_creation.create(opened, NewStream("test", {"a": ["\0"]}, {"chat": 1}, "retry"))
    async with working(dsn, generate), connected(dsn) as connection:
        await ended(connection, stream.id)
    assert seen == [GenerationRequest(stream.id, {"a": ["\0"]}, {"chat": 1}, 1)]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (GenerationError("rate_limited", "Slow \0down."), "rate_limited", "Slow \ufffddown."),
        (GenerationError("Not A Word", "m"), "other", "m"),
        (GenerationError(429, None), "other", "None"),  # type: ignore[arg-type]
        (RuntimeError("secret"), "generator_error", GENERATOR_FAULT),
        (asyncio.CancelledError(), "generator_error", GENERATOR_FAULT),
        (TimeoutError(), "generator_error", GENERATOR_FAULT),
    ],
)
async def test_a_raised_error_becomes_the_end_and_the_text_stays(
    dsn: str, error: BaseException, code: str, message: str
) -> None:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield "partial"
        raise error

    stream, found = await outcome(dsn, generate)
    assert (stream.status, stream.error_code, stream.error_message) == ("failed", code, message)
    assert found[-1]["error"] == {"code": code, "message": message}
    assert text(found) == "partial"


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        (b"bytes", "A generator must yield str or dict, not bytes."),
        (None, "A generator must yield str or dict, not NoneType."),
        ({"type": "nonsense", "delta": ""}, "An event's type must be one of"),
        ({"type": "text"}, "A text event needs 'delta'"),
        ({"type": "custom", "name": "x", "data": object()}, "not JSON"),
    ],
)
async def test_an_invalid_event_ends_the_stream_and_is_logged(
    dsn: str, item: Any, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield "a"
        yield item

    stream, found = await outcome(dsn, generate)
    assert (stream.error_code, text(found)) == ("invalid_event", "a")
    assert stream.error_message == GENERATOR_FAULT
    assert sentence in caplog.text


CALL: dict[str, Any] = {"type": "tool_call", "index": 0, "id": "c", "name": "f", "arguments_delta": "{"}


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ([{**CALL, "id": None}], "The first tool_call event of index 0 lacks 'id'."),
        ([{**CALL, "name": ""}], "The first tool_call event of index 0 lacks 'name'."),
        ([{"type": "tool_call", "index": 2, "arguments_delta": "{"}], "of index 2 lacks 'id' and 'name'."),
        ([CALL, {**CALL, "id": "d", "name": None}], "The first tool_call event of index 0 lacks 'name'."),
        ([{"type": "finish", "finish_reason": 3}], "A finish event's 'finish_reason' must be a string, not int."),
    ],
)
async def test_an_invalid_event_is_reported_with_its_line_in_the_generator(
    dsn: str, items: list[Any], sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield "a"
        for item in items:
            yield item
        yield "after"

    stream, found = await outcome(dsn, generate)
    assert (stream.error_code, text(found)) == ("invalid_event", "a")
    assert stream.error_message == GENERATOR_FAULT
    assert sentence in caplog.text
    line = generate.__code__.co_firstlineno + 3
    assert f"The value yielded at {__file__}:{line} is not an event" in caplog.text


async def test_a_tool_call_continues_and_another_may_follow_at_its_index(dsn: str) -> None:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield CALL
        yield {"type": "tool_call", "index": 0, "arguments_delta": "}"}
        yield CALL | {"id": "d"}
        yield {"type": "finish", "finish_reason": "STOP"}

    stream, found = await outcome(dsn, generate)
    assert (stream.status, stream.finish_reason, len(found)) == ("completed", "stop", 4)


@pytest.mark.parametrize("begun", [False, True])
async def test_an_sdks_exception_becomes_the_matching_error_code(
    dsn: str, begun: bool, caplog: pytest.LogCaptureFixture
) -> None:
    request = httpx2.Request("POST", "https://api.provider.test/v1")
    limited = openai.RateLimitError(
        "no", response=httpx2.Response(429, headers={"retry-after": "20"}, request=request), body=None
    )

    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        if begun:
            yield "a"
            raise openai.APIConnectionError(request=request)
        try:
            raise limited
        except openai.RateLimitError as error:
            raise RuntimeError("as a framework wraps it") from error

    stream, _ = await outcome(dsn, generate)
    expected = "provider_cut_off" if begun else "provider_rate_limited"
    assert (stream.status, stream.error_code) == ("failed", expected)
    assert ("wait 20 seconds" in (stream.error_message or "")) is not begun
    assert expected in caplog.text


async def test_usage_that_no_column_can_hold_is_made_storable(dsn: str) -> None:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "usage", "lone\ud800": 1, "nul\0": 2, "nan": float("nan"), "big": 2**63}

    stream, _ = await outcome(dsn, generate)
    assert (stream.status, stream.usage) == ("completed", {"lone\ufffd": 1, "big": 2**63})


@pytest.mark.parametrize("kind", ["coroutine", "iterator"])
async def test_a_generator_that_is_not_async_is_explained_in_the_log(
    dsn: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Iterates:
        def __aiter__(self) -> AsyncIterator[str]:
            return self

        async def __anext__(self) -> str:
            raise StopAsyncIteration

    coroutines = []

    def generate(_request: GenerationRequest) -> Any:
        if kind == "iterator":
            return Iterates()
        coroutines.append(asyncio.sleep(0))
        return coroutines[-1]

    stream, _ = await outcome(dsn, generate)
    for coroutine in coroutines:
        coroutine.close()
    assert stream.error_code == "invalid_event"
    assert stream.error_message == GENERATOR_FAULT
    assert "must `yield`" in caplog.text
    gc.collect()


class Waiting:
    """A generator that yields once, waits, and remembers how it was stopped."""

    def __init__(self, *, stubborn: bool = False) -> None:
        self.cancelled = self.cleaned = False
        self.stubborn = stubborn
        self.released = asyncio.Event()
        self.over = asyncio.Event()

    async def __call__(self, _request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        try:
            yield "a"
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            if not self.stubborn:
                raise
            await self.released.wait()
            yield "too late"
        finally:
            await asyncio.sleep(0)
            self.cleaned = True
            self.over.set()


async def test_cancelling_the_stream_cancels_its_generator_and_lets_it_clean_up(dsn: str) -> None:
    generator = Waiting()
    stream_id = await queue(dsn)
    async with working(dsn, generator), connected(dsn) as connection:
        await until_tail(connection, stream_id, 1)
        assert await cancel(dsn, stream_id) == "running"
        stream = await ended(connection, stream_id)
        found = await events(connection, stream_id)
    assert (generator.cancelled, generator.cleaned) == (True, True)
    assert (stream.status, stream.finish_reason, stream.error_code, stream.tokens) == (
        "cancelled",
        "cancelled",
        None,
        1,
    )
    assert text(found) == "a"


async def test_a_generator_that_ignores_its_cancellation_blocks_nothing(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "STUBBORN_SECONDS", 0.05)
    generator = Waiting(stubborn=True)
    stream_id = await queue(dsn)
    async with working(dsn, generator) as worker, connected(dsn) as connection:
        await until_tail(connection, stream_id, 1)
        await cancel(dsn, stream_id)
        assert (await ended(connection, stream_id)).status == "cancelled"
        await until(lambda: not worker.slots.runs)
        assert not generator.cleaned
        generator.released.set()
        await generator.over.wait()
        assert len(await events(connection, stream_id)) == 2


async def test_a_generator_that_raises_on_cancellation_counts_as_cancelled(dsn: str) -> None:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        try:
            yield "a"
            await asyncio.Event().wait()
        finally:
            raise GenerationError("oops", "It broke on its way out.")

    stream_id = await queue(dsn)
    async with working(dsn, generate), connected(dsn) as connection:
        await until_tail(connection, stream_id, 1)
        await cancel(dsn, stream_id)
        assert (await ended(connection, stream_id)).status == "cancelled"


async def test_a_stream_cancelled_while_it_was_requeued_never_starts(dsn: str) -> None:
    started = asyncio.Event()

    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        started.set()
        yield "a"

    stream_id = await queue(dsn)
    async with connected(dsn) as connection:
        await connection.execute("UPDATE baton.stream SET cancel_requested_at = now()")
        async with working(dsn, generate):
            assert (await ended(connection, stream_id)).status == "cancelled"
        assert (await row(connection, stream_id)).tokens == 0
    assert not started.is_set()


LINE_BYTES = len(b'{"type":"text","delta":"12345"}')


@pytest.mark.parametrize(
    ("limits", "code", "kept"),
    [
        ({"max_stream_events": 3}, "too_many_events", 3),
        ({"max_stream_bytes": 1024}, "stream_too_large", 1024 // LINE_BYTES),
    ],
)
async def test_a_generator_that_yields_too_much_is_stopped_and_its_text_stays(
    dsn: str, limits: dict[str, int], code: str, kept: int
) -> None:
    stopped = asyncio.Event()

    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        try:
            while True:
                yield "12345"
        finally:
            stopped.set()

    stream_id = await queue(dsn)
    async with working(dsn, generate, **limits), connected(dsn) as connection:
        stream = await ended(connection, stream_id)
        found = await events(connection, stream_id)
        await asyncio.wait_for(stopped.wait(), DEADLINE_SECONDS)
    assert (stream.status, stream.error_code, stream.tokens) == ("failed", code, kept + 1)
    assert [event["type"] for event in found] == ["text"] * kept + ["done"]


async def test_the_allowed_number_of_events_is_not_a_failure(dsn: str) -> None:
    stream, found = await outcome(dsn, answer, max_stream_events=3)
    assert (stream.status, len(found)) == ("completed", 4)


@pytest.mark.parametrize("item", ["x" * 1100, "\0" * 200, {"type": "tool_result", "id": "t", "result": ["x" * 1100]}])
async def test_an_event_that_is_too_large_ends_the_stream_before_it(dsn: str, item: Yielded) -> None:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield "a"
        yield item
        yield "b"

    stream, found = await outcome(dsn, generate, max_event_bytes=1024)
    assert (stream.status, stream.error_code) == ("failed", "event_too_large")
    assert [event.get("delta") for event in found] == ["a", None]


async def test_a_generator_that_ignores_its_limit_writes_nothing_more(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "STUBBORN_SECONDS", 0.2)
    released = asyncio.Event()

    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        try:
            yield "a"
            yield "b"
        finally:
            while not released.is_set():
                try:
                    await released.wait()
                except asyncio.CancelledError:
                    continue

    stream, found = await outcome(dsn, generate, max_stream_events=1)
    released.set()
    assert (stream.error_code, len(found)) == ("too_many_events", 2)


async def test_a_former_workers_events_count(dsn: str) -> None:
    stream_id = await queue(dsn)
    async with connected(dsn) as connection:
        await connection.execute("UPDATE baton.stream SET status = 'running', epoch = 1 WHERE id = $1", stream_id)
        lines = b"\n".join([b'{"type":"text","delta":"a"}'] * 5)
        await event_log.append(connection, [Append(stream_id, 1, 1, 5, lines)])
        await connection.execute("UPDATE baton.stream SET status = 'queued' WHERE id = $1", stream_id)
        async with working(dsn, answer, max_stream_events=7):
            stream = await ended(connection, stream_id)
            kinds = [event["type"] for event in await events(connection, stream_id)]
    assert stream.error_code == "too_many_events"
    assert kinds == ["text"] * 5 + ["reset"] + ["text"] * 2 + ["done"]
