"""Sends spans to a collector, as OpenTelemetry's own environment variables say. Needs the extra `otel`."""

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

# A process that leaves has little time, and the collector may be gone.
SHUTDOWN_SECONDS: Final = 2


@contextlib.contextmanager
def exporting(name: str) -> Iterator[None]:
    """Send what is traced meanwhile, as the process of this name, and at the end what is left."""
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
    """Say which process this is; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES count for more."""
    ours = Resource.create({SERVICE_NAME: "baton", SERVICE_INSTANCE_ID: name})
    return ours.merge(OTELResourceDetector().detect())
