"""One trace from the client's request to the worker, and to every connection that follows, on whichever pod."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id
from tests.support.cluster import Cluster, Tap, echo
from tests.support.doors import DOORS
from tests.support.logbook import has_events, until, working
from tests.support.processes import environment, finished, running
from tests.support.provider_server import ProviderServer, Reply, data_frames, refusal

from baton.errors import GenerationError
from baton.generators import GenerationRequest, close_generators, load_generators
from baton.generators.protocol import Yielded
from baton.observability import traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
OTHER = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}


class Spans:
    """What was exported."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("test")

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    async def one(self, name: str) -> ReadableSpan:
        await until(lambda: bool(self.named(name)))
        (span,) = self.named(name)
        return span


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    """A provider of the test's own: the global one is set once for a process, and would trace all tests after this."""
    found = Spans()
    monkeypatch.setattr("baton.observability.tracing._tracer", found.tracer)
    return found


def told(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def ids(span: ReadableSpan) -> tuple[str, str | None]:
    """Its trace, and its parent."""
    return format_trace_id(span.context.trace_id), format_span_id(span.parent.span_id) if span.parent else None


def own_id(span: ReadableSpan) -> str:
    return format_span_id(span.context.span_id)


async def create(cluster: Cluster, url: str, headers: Mapping[str, str] = PARENT, **body: Any) -> str:
    answer = await cluster.client.post(f"{url}/v1/streams", json={"input": ["a"]} | body, headers=dict(headers))
    assert answer.status_code == 201, answer.text
    stream_id: str = answer.json()["id"]
    return stream_id


async def test_a_trace_goes_through_pod_worker_and_another_pod(cluster: Cluster, spans: Spans) -> None:
    one, other = await cluster.pod(), await cluster.pod()
    await cluster.worker({"replay": echo})
    items = [
        "a",
        {"type": "usage", "input_tokens": 3, "output_tokens": 4},
        {"type": "finish", "finish_reason": "length"},
    ]
    stream_id = await create(cluster, one.url, input=items)
    generated = await spans.one("generate")
    following = OTHER | {"last-event-id": "1"}
    answer = await cluster.client.get(f"{other.url}/v1/streams/{stream_id}/events", headers=following)
    assert answer.status_code == 200
    created, followed = await spans.one("create"), await spans.one("follow")
    assert ids(created) == (TRACE, SPAN)
    assert ids(generated) == ids(followed) == (TRACE, own_id(created))
    assert (created.kind, generated.kind, followed.kind) == (SpanKind.SERVER, SpanKind.INTERNAL, SpanKind.SERVER)
    # The client that follows has a trace of its own.
    assert [format_trace_id(link.context.trace_id) for link in followed.links] == ["a" * 32]
    assert not created.links
    assert {told(span)["baton.stream.id"] for span in (created, generated, followed)} == {stream_id}
    assert told(created)["baton.created"] is True
    assert told(generated) == {
        "baton.stream.id": stream_id,
        "baton.tenant": "",
        "baton.attempt": 1,
        "baton.run": 1,
        "baton.epoch": 1,
        "baton.status": "completed",
        "baton.events": 3,
        "baton.tokens": 1,
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "replay",
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.response.time_to_first_chunk": told(generated)["gen_ai.response.time_to_first_chunk"],
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 4,
    }
    (first,) = generated.events
    assert first.name == "first token"
    assert generated.start_time is not None
    assert generated.end_time is not None
    assert generated.start_time <= first.timestamp <= generated.end_time
    assert told(followed)["baton.reason"] == "ended"
    assert (told(followed)["baton.from_cursor"], told(followed)["baton.cursor"], told(followed)["baton.events"]) == (
        1,
        3,
        2,
    )
    assert all(span.status.status_code is StatusCode.UNSET for span in (created, generated, followed))


async def test_a_stream_that_is_taken_over_stays_in_its_trace(cluster: Cluster, spans: Spans) -> None:
    pod, tap = await cluster.pod(), Tap()
    async with working(cluster.dsn, {"replay": tap}):
        stream_id = await create(cluster, pod.url)
        tap.let("a")
        await until(lambda: has_events(cluster.pool, stream_id))
    async with working(cluster.dsn, {"replay": echo}):
        answer = await cluster.client.get(f"{pod.url}/v1/streams/{stream_id}/events")
    assert '"reset"' in answer.text
    await until(lambda: len(spans.named("generate")) == 2)
    created, followed = await spans.one("create"), await spans.one("follow")
    assert [told(span)["baton.attempt"] for span in spans.named("generate")] == [1, 2]
    assert {ids(span) for span in (*spans.named("generate"), followed)} == {(TRACE, own_id(created))}


MESSAGES = [{"role": "user", "content": "a"}]
WAYS: dict[str, Any] = {
    "/v1/streams": {"input": ["a"]},
    "/v1/responses": {"model": "words", "input": "a", "stream": True},
    "/v1/chat/completions": {"model": "words", "messages": MESSAGES, "stream": True},
    "/v1/ai-sdk/chat": {
        "id": "c",
        "model": "words",
        "messages": [{"role": "user", "parts": [{"type": "text", "text": "a"}]}],
    },
    **dict(door.creating("words", "a") for door in DOORS.values()),
}


@pytest.mark.parametrize("path", WAYS)
async def test_each_dialect_has_its_spans(cluster: Cluster, spans: Spans, path: str) -> None:
    async def words(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield "a"

    pod = await cluster.pod()
    await cluster.worker({"replay": words, "words": words})
    given = PARENT | {"accept": "text/event-stream"}
    answer = await cluster.client.post(pod.url + path, json=WAYS[path], headers=given)
    assert answer.status_code == 200, answer.text
    created, followed, generated = [await spans.one(name) for name in ("create", "follow", "generate")]
    assert told(created)["url.path"] == path
    assert ids(created) == (TRACE, SPAN)
    assert ids(followed) == ids(generated) == (TRACE, own_id(created))
    assert not followed.links


async def test_a_generator_is_in_the_trace_and_can_propagate_it(cluster: Cluster, spans: Spans) -> None:
    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        with spans.tracer.start_as_current_span("ask"):
            yield str(request.traceparent)

    pod = await cluster.pod()
    await cluster.worker({"replay": generate})
    stream_id = await create(cluster, pod.url)
    content = (await cluster.client.get(f"{pod.url}/v1/streams/{stream_id}?wait=20")).json()
    generated, asked = await spans.one("generate"), await spans.one("ask")
    assert ids(asked) == (TRACE, own_id(generated))
    assert content["text"] == f"00-{TRACE}-{own_id(generated)}-01"


async def test_failures_are_reported_by_code_only(cluster: Cluster, spans: Spans) -> None:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield "a"
        raise GenerationError("rate_limited", "a secret")

    pod = await cluster.pod()
    await cluster.worker({"replay": generate})
    await create(cluster, pod.url, headers={})
    generated = await spans.one("generate")
    assert (generated.status.status_code, generated.status.description) == (StatusCode.ERROR, "rate_limited")
    assert told(generated)["error.type"] == "rate_limited"
    assert "secret" not in generated.to_json()
    assert ids(await spans.one("create"))[1] is None
    # A refusal is the client's error, and not the pod's.
    answer = await cluster.client.post(
        f"{pod.url}/v1/streams", json={"input": 1, "generator": "nobody"}, headers=PARENT
    )
    assert answer.status_code == 422
    (_, refused) = spans.named("create")
    assert (refused.status.status_code, told(refused)["error.type"]) == (StatusCode.UNSET, "unknown_generator")


async def test_an_unsampled_trace_is_propagated_and_not_recorded(cluster: Cluster, spans: Spans) -> None:
    pod, seen = await cluster.pod(), list[str | None]()

    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        seen.append(request.traceparent)
        yield "a"

    await cluster.worker({"replay": generate})
    stream_id = await create(cluster, pod.url, headers={"traceparent": f"00-{TRACE}-{SPAN}-00"})
    await cluster.client.get(f"{pod.url}/v1/streams/{stream_id}?wait=20")
    (carried,) = map(traceparent.parse, seen)
    assert carried is not None
    assert (carried.trace_id, carried.sampled) == (TRACE, False)
    assert spans.exporter.get_finished_spans() == ()


async def test_an_application_that_mounts_baton_has_the_trace(cluster: Cluster, spans: Spans) -> None:
    pod = await cluster.pod()
    inner = pod.app.build_middleware_stack()

    async def around(scope: Any, receive: Any, send: Any) -> None:
        with spans.tracer.start_as_current_span("request"):
            await inner(scope, receive, send)

    pod.app.middleware_stack = around
    await create(cluster, pod.url)
    outer, created = await spans.one("request"), await spans.one("create")
    assert ids(created) == (format_trace_id(outer.context.trace_id), own_id(outer))


WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
import baton.cli, baton.app, baton.worker.worker
from baton.observability import traceparent, tracing
from baton.errors import ConfigurationError
parent = traceparent.parse(sys.argv[1])
with tracing.span("create", parent, kind="server", attributes={"a": 1}, link=parent) as span:
    span.set({"b": 2}); span.event("c", 1.0); span.fail("d")
    assert span.traceparent is traceparent.current() is tracing.here() is parent and not span.recorded
assert not any(name.startswith("opentelemetry.") for name in sys.modules)
try:
    tracing.wanted()
except ConfigurationError as error:
    print(error)
"""


async def test_without_opentelemetry_a_trace_passes_through(cluster: Cluster) -> None:
    given = environment(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    code, out, err = await finished("-c", WITHOUT, PARENT["traceparent"], env=given, command=sys.executable)  # type: ignore[arg-type]
    assert code == 0, err
    assert 'pip install "baton-stream[otel]"' in out


class Collector:
    """Hears what is sent to an OTLP collector."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                assert head.startswith("post /v1/traces ")
                length = next(line for line in head.split("\r\n") if line.startswith("content-length"))
                self.bodies.append(await reader.readexactly(int(length.partition(":")[2])))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()


@contextlib.asynccontextmanager
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    hearing = Collector()
    async with await asyncio.start_server(hearing.answer, "127.0.0.1", 0) as server:
        yield hearing, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_process_exports_its_spans_and_names_them_in_its_log(cluster: Cluster) -> None:
    pod = await cluster.pod()
    async with collector() as (hearing, url):
        given = {
            "BATON_DATABASE_URL": cluster.dsn,
            "BATON_WORKER_NAME": "w-1",
            "BATON_REPLAY_SPEED": "1000",
            "GOOGLE_CLOUD_PROJECT": "mine",
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        }
        async with running("worker", env=environment(**given)) as worker:
            stream_id = await create(cluster, pod.url, input="hello")
            line = json.loads((await worker.said("has ended")).string)
            worker.process.terminate()
            assert await worker.ends() == 0
    assert (line["stream_id"], line["worker"], line["severity"]) == (stream_id, "w-1", "INFO")
    assert line["logging.googleapis.com/trace"] == f"projects/mine/traces/{TRACE}"
    # What was left at the end was sent then.
    body = b"".join(hearing.bodies)
    for part in (
        bytes.fromhex(TRACE),
        bytes.fromhex(line["logging.googleapis.com/spanId"]),
        b"w-1",
        b"baton",
        b"generate",
    ):
        assert part in body


async def test_a_span_has_the_requested_and_the_answering_model(cluster: Cluster, spans: Spans) -> None:
    """By the conventions for generative AI: the provider's SDK may bring no instrumentation of its own."""
    chunk = {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5-2026-01-01"}
    usage = {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }
    choice = {"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}
    frames = data_frames(chunk | {"choices": [choice]}, chunk | {"choices": [], "usage": usage})
    pod = await cluster.pod(models={"fast": {"generator": "openai", "model": "gpt-5"}}, openai_api_key="sk-test")
    async with ProviderServer(Reply([*frames, b"data: [DONE]\n\n"])) as server:
        settings = cluster.settings(
            models={"fast": {"generator": "openai", "model": "gpt-5"}},
            openai_api_key="sk-test",
            openai_api="chat",
            openai_base_url=f"{server.url}/v1",
        )
        generators = load_generators(settings)
        await cluster.worker(generators)
        try:
            await create(cluster, pod.url, generator="fast", input="Hello")
            generated = await spans.one("generate")
        finally:
            await close_generators(generators)
    found = told(generated)
    assert {name: value for name, value in found.items() if name.startswith("gen_ai.")} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.agent.name": "fast",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5",
        "gen_ai.request.stream": True,
        "gen_ai.response.id": "chatcmpl-7",
        "gen_ai.response.model": "gpt-5-2026-01-01",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.time_to_first_chunk": found["gen_ai.response.time_to_first_chunk"],
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "gen_ai.usage.reasoning.output_tokens": 1,
    }


async def test_a_span_has_the_calls_that_failed_and_the_model_that_answered(cluster: Cluster, spans: Spans) -> None:
    chunk = {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 1, "model": "m-2"}
    choice = {"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}
    whole = Reply(data_frames(chunk | {"choices": [choice]}, done=True))
    async with ProviderServer(refusal(401, {"message": "no"})) as one, ProviderServer(whole) as two:
        models = {
            "fast": {"generator": "openai", "base_url": f"{one.url}/v1", "fallback": ["spare"]},
            "spare": {"generator": "openai", "base_url": f"{two.url}/v1"},
        }
        pod = await cluster.pod(models=models)
        generators = load_generators(cluster.settings(models=models, openai_api="chat"))
        await cluster.worker(generators)
        try:
            await create(cluster, pod.url, generator="fast", input="Hello")
            generated = await spans.one("generate")
        finally:
            await close_generators(generators)
    found = told(generated)
    assert (found["gen_ai.request.model"], found["gen_ai.response.model"]) == ("fast", "m-2")
    assert found["baton.answered_by"] == "spare"
    (failed,) = [event for event in generated.events if event.name == "provider call failed"]
    assert dict(failed.attributes or {}) == {
        "baton.name": "fast",
        "baton.model": "fast",
        "baton.error": "provider_auth_failed",
        "baton.status": 401,
        "baton.waited_seconds": 0.0,
    }


async def test_each_attempts_span_has_its_own_usage(cluster: Cluster, spans: Spans) -> None:
    pod, first, second = await cluster.pod(), Tap(), Tap()
    worker = await cluster.worker({"replay": first}, worker_drain_seconds=0)
    stream_id = await create(cluster, pod.url)
    first.let({"type": "usage", "input_tokens": 10}, "a")
    url = f"{pod.url}/v1/streams/{stream_id}"

    async def said() -> bool:
        return bool((await cluster.client.get(url)).json()["text"] == "a")

    await until(said)
    worker.leave()
    await cluster.worker({"replay": second})
    second.let({"type": "usage", "input_tokens": 3})
    second.end()
    await until(lambda: len(spans.named("generate")) == 2)
    assert sorted(told(span)["gen_ai.usage.input_tokens"] for span in spans.named("generate")) == [3, 10]
    assert (await cluster.client.get(url)).json()["usage"] == {"input_tokens": 13}
