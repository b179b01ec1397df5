"""Exports spans to the collector that OpenTelemetry's own environment variables name. Needs the extra `otel`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Final

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

# A process that is shutting down has little time, and the collector may be gone.
SHUTDOWN_SECONDS: Final = 2


@contextlib.contextmanager
def exporting(name: str) -> Iterator[None]:
    """Export the spans made inside the block, as the process of this name; at the end, flush the rest."""
    provider = TracerProvider(resource=resource(name), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        closing = threading.Thread(target=provider.shutdown, daemon=True)
        closing.start()
        closing.join(SHUTDOWN_SECONDS)


def resource(name: str) -> Resource:
    """Describe this process; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence."""
    ours = Resource.create({SERVICE_NAME: "baton", SERVICE_INSTANCE_ID: name})
    return ours.merge(OTELResourceDetector().detect())
