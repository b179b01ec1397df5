"""What a worker reports about its runs: metrics, a span for each run, and a line in the log for each end."""

from __future__ import annotations

import time
from typing import Any

from ..generators.requested_model import RequestedModel
from ..observability import stream_end, traceparent, tracing
from ..observability.metrics import Labels, Names, WorkerMetrics
from ..observability.tracing import Span
from ..outcome import Outcome
from .run import Run


class Telemetry:
    """Reports the runs of one worker. `names` are the generators and models that may be labels."""

    def __init__(self, metrics: WorkerMetrics, names: Names) -> None:
        self._metrics = metrics
        self._names = names

    def labels(self, generator: str, model: str | None = None) -> Labels:
        """Return the labels of a generator and the model that it asks."""
        return self._names.labels(generator, model)

    def count_end(self, outcome: Outcome, generator: str) -> None:
        """Count the end of a stream that had no run here."""
        self._metrics.ended.add(*self.labels(generator), outcome.status, outcome.code)

    async def observe(self, run: Run, asked: RequestedModel) -> None:
        """Run a stream to its end, and report it."""
        metrics, claim = self._metrics, run.claim
        metrics.running += 1
        if claim.epoch == 1:
            metrics.queue_seconds.of(run.labels.generator).observe(claim.queued)
        try:
            await self._trace(run, asked)
        finally:
            if claim.interruption is not None:
                how = "continued" if run.feed.continued else "restarted"
                metrics.taken_over.add(run.labels.generator, claim.interruption, how)
            metrics.used(run.labels, run.outbox.bill.own or {})
            for call in run.answer.failed_calls:
                metrics.failed_calls.add(*self.labels(call.name, call.model), call.then, call.code)
            metrics.running -= 1

    async def _trace(self, run: Run, asked: RequestedModel) -> None:
        """Run a stream in the trace of the request that created it."""
        claim = run.claim
        about: dict[str, tracing.Value | None] = {
            "baton.stream.id": str(claim.stream_id),
            "baton.tenant": claim.tenant,
            "baton.attempt": claim.attempts,
            "baton.run": claim.run,
            "baton.interruption": claim.interruption,
            "baton.epoch": claim.epoch,
            "gen_ai.operation.name": "chat" if asked.provider else "invoke_agent",
            "gen_ai.agent.name": claim.generator,
            "gen_ai.provider.name": asked.provider,
            "gen_ai.request.model": asked.model,
            "gen_ai.request.stream": True if asked.provider else None,
        }
        parent = traceparent.parse(claim.traceparent)
        with tracing.span("generate", parent, kind="internal", attributes=about) as span:
            started_at = time.time()
            outcome = await run.run()
            if span.recorded:
                span.set(_usage(run))
            if outcome is None:
                return  # another worker has the stream, and ends it
            self._metrics.ended.add(*run.labels, outcome.status, outcome.code)
            self._metrics.stream_seconds.of(*run.labels).observe(outcome.timings.duration_seconds)
            if span.recorded:
                _end_span(span, run, outcome, started_at)
            stream_end.note(claim.stream_id, outcome, **_log_fields(run, outcome, asked))


def _log_fields(run: Run, outcome: Outcome, asked: RequestedModel) -> dict[str, Any]:
    """Return the fields of the log's line about a stream that has ended here."""
    claim, timings = run.claim, outcome.timings
    return {
        "tenant": claim.tenant,
        "generator": claim.generator,
        "model": asked.model,
        "provider": asked.provider,
        "attempt": claim.attempts,
        "run": claim.run,
        "interruption": claim.interruption,
        "epoch": claim.epoch,
        "events": run.outbox.tail,
        "size_bytes": run.feed.size_bytes,
        "tokens": timings.tokens,
        "queue_seconds": claim.queued,
        "time_to_first_token_seconds": timings.time_to_first_token_seconds,
        "duration_seconds": timings.duration_seconds,
        "total_seconds": claim.queued + claim.elapsed + time.monotonic() - run.started_at,
    }


def _usage(run: Run) -> dict[str, tracing.Value | None]:
    """Return what this run used, by the conventions for generative AI."""
    usage = run.outbox.bill.own or {}
    return {
        "gen_ai.usage.input_tokens": usage.get("input_tokens"),
        "gen_ai.usage.output_tokens": usage.get("output_tokens"),
        "gen_ai.usage.cache_read.input_tokens": usage.get("cached_tokens"),
        "gen_ai.usage.cache_creation.input_tokens": usage.get("cache_write_tokens"),
        "gen_ai.usage.reasoning.output_tokens": usage.get("reasoning_tokens"),
    }


def _end_span(span: Span, run: Run, outcome: Outcome, started_at: float) -> None:
    """Record in a span how a stream ended, by the conventions for generative AI where they cover it."""
    timings = outcome.timings
    span.set(
        {
            "baton.status": outcome.status,
            "baton.events": run.outbox.tail,
            "baton.tokens": timings.tokens,
            "gen_ai.response.finish_reasons": [outcome.finish_reason] if outcome.finish_reason else None,
            "gen_ai.response.time_to_first_chunk": timings.time_to_first_token_seconds,
        }
    )
    if timings.time_to_first_token_seconds is not None:
        span.event("first token", started_at + timings.time_to_first_token_seconds)
    if outcome.status == "failed":
        span.fail(outcome.code)
