"""Makes OpenTelemetry spans if the extra `otel` is installed; without it, nothing of OpenTelemetry is imported.

The trace of the request that creates a stream continues in the worker that runs it, and in every connection that
follows it on any pod: the stream's row holds the `traceparent`. Without OpenTelemetry the client's trace still passes
through to the row, the log and the generator's request.

Spans go to OpenTelemetry's global provider: the one that `trace_export` sets, or the one of the application that mounts
Baton. No span is made for an event or a batch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final, Literal, TypeAlias

from ..errors import ConfigurationError, RequestError
from ..version import __version__
from . import traceparent
from .traceparent import TraceParent

try:
    from opentelemetry import trace
    from opentelemetry.context import Context
except ModuleNotFoundError:
    INSTALLED = False
else:
    INSTALLED = True
    _KINDS: Final = {"server": trace.SpanKind.SERVER, "internal": trace.SpanKind.INTERNAL}
    # It looks up the provider when it makes the first span, so one may be set until then.
    _tracer: Final = trace.get_tracer("baton", __version__)

COLLECTOR: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

Kind: TypeAlias = Literal["server", "internal"]
Value: TypeAlias = str | bool | int | float | Sequence[str]


class Span:
    """Work in a trace. A span that is not recorded ignores what is set."""

    __slots__ = ("_inner", "traceparent")

    def __init__(self, parent: TraceParent | None, inner: trace.Span | None = None) -> None:
        self.traceparent = parent  # the parent of the work that follows
        self._inner = inner

    @property
    def recorded(self) -> bool:
        """Whether attributes are kept; if not, do not compute them."""
        return self._inner is not None

    def set(self, attributes: Mapping[str, Value | None]) -> None:
        """Set attributes, except those that are None."""
        if self._inner is not None:
            self._inner.set_attributes({name: value for name, value in attributes.items() if value is not None})

    def event(self, name: str, at_seconds: float) -> None:
        """Add an event at a time in seconds since 1970."""
        if self._inner is not None:
            self._inner.add_event(name, timestamp=int(at_seconds * 1e9))

    def fail(self, code: str) -> None:
        """Mark the work as failed. The error's message may be private, so only its code is set."""
        if self._inner is not None:
            self._inner.set_attribute("error.type", code)
            self._inner.set_status(trace.StatusCode.ERROR, code)


def span(
    name: str,
    parent: TraceParent | None,
    *,
    kind: Kind,
    attributes: Mapping[str, Value | None],
    link: TraceParent | None = None,
) -> AbstractContextManager[Span]:
    """Run a block in a span: log records and spans made inside belong to it.

    `link` is a span of another trace that is related. A request that is refused (4xx) is not a failure of the span.
    """
    if not _recording():
        return _Unrecorded(parent)
    return _recorded(name, parent, kind=kind, attributes=attributes, link=link)


def note(attributes: Mapping[str, Value | None]) -> None:
    """Set attributes of the current span, if it is recorded, except those that are None."""
    if INSTALLED and (inner := trace.get_current_span()).is_recording():
        inner.set_attributes({name: value for name, value in attributes.items() if value is not None})


def note_event(name: str, attributes: Mapping[str, Value]) -> None:
    """Add an event to the current span, if it is recorded."""
    if INSTALLED and (inner := trace.get_current_span()).is_recording():
        inner.add_event(name, attributes)


def _recording() -> bool:
    """Whether OpenTelemetry is installed and has a provider. Until one is set, its tracers are proxies."""
    if not INSTALLED:
        return False
    is_proxy = isinstance(_tracer, trace.ProxyTracer)
    return not (is_proxy and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider))


class _Unrecorded:
    """Work without a span of its own. Small: each connection holds one while it is open."""

    __slots__ = ("_parent", "_token")

    def __init__(self, parent: TraceParent | None) -> None:
        self._parent = parent

    def __enter__(self) -> Span:
        self._token = traceparent.enter(self._parent)
        return Span(self._parent)

    def __exit__(self, *_: object) -> None:
        traceparent.leave(self._token)


@contextlib.contextmanager
def _recorded(
    name: str,
    parent: TraceParent | None,
    *,
    kind: Kind,
    attributes: Mapping[str, Value | None],
    link: TraceParent | None,
) -> Iterator[Span]:
    links = [trace.Link(_context_of(link))] if link is not None and not _same_trace(link, parent) else None
    inner = _tracer.start_span(name, _context(parent), _KINDS[kind], links=links)
    with trace.use_span(inner, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        made = Span(_traceparent(inner.get_span_context()), inner if inner.is_recording() else None)
        made.set(attributes)
        with traceparent.within(made.traceparent), _failing(made):
            yield made


def wanted() -> bool:
    """Whether OpenTelemetry's own environment variables name a collector for traces.

    Raises:
        ConfigurationError: it does, and OpenTelemetry is not installed.
    """
    named = any(os.environ.get(name) for name in COLLECTOR)
    off = os.environ.get("OTEL_TRACES_EXPORTER", "otlp") == "none"
    if not named or off or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if not INSTALLED:
        raise ConfigurationError(
            "OTEL_EXPORTER_OTLP_ENDPOINT asks for traces, and OpenTelemetry is not installed. Install it (`pip install "
            '"baton-stream[otel]"`), or set OTEL_TRACES_EXPORTER=none.'
        )
    return True


def here() -> TraceParent | None:
    """Return the current span: the application's own if it has one, otherwise the client's."""
    own = _traceparent(trace.get_current_span().get_span_context()) if INSTALLED else None
    return own or traceparent.current()


@contextlib.contextmanager
def _failing(made: Span) -> Iterator[None]:
    try:
        yield
    except RequestError as error:
        if error.status >= 500:
            made.fail(error.code)
        else:
            made.set({"error.type": error.code})
        raise
    except Exception as error:
        made.fail(type(error).__qualname__)
        raise


def _same_trace(one: TraceParent, other: TraceParent | None) -> bool:
    return other is not None and one.trace_id == other.trace_id


def _context(parent: TraceParent | None) -> Context:
    """Return a context that holds only the parent: the span that is open here is unrelated."""
    empty = Context()
    if parent is None:
        return empty
    return trace.set_span_in_context(trace.NonRecordingSpan(_context_of(parent)), empty)


def _context_of(known: TraceParent) -> trace.SpanContext:
    flags = trace.TraceFlags(int(known.flags, 16))
    return trace.SpanContext(int(known.trace_id, 16), int(known.span_id, 16), is_remote=True, trace_flags=flags)


def _traceparent(context: trace.SpanContext) -> TraceParent | None:
    if not context.is_valid:
        return None
    return TraceParent(
        trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id), f"{context.trace_flags:02x}"
    )
