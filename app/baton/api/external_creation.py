"""Creating external streams: what `POST /v1/streams` and the `PUT` of the Durable Streams protocol have in common."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from starlette.requests import Request

from ..db import external_streams, stream_creation
from ..db.external_streams import ExternalStream, NewExternal
from ..db.stream_creation import IdempotencyKey, Limits, NewStream
from ..db.streams import Stream
from ..errors import TooManyStreams
from ..observability import log_context, tracing
from ..pod import placement
from ..pod.shard import Shard
from . import across_databases, actions
from .problems import path_of
from .request import pod_of, principal_of

logger = logging.getLogger(__name__)


def new_stream(
    request: Request,
    limits: Limits,
    content: Any = None,
    metadata: Mapping[str, Any] | None = None,
    webhook: str | None = None,
) -> NewStream:
    """Return what a new open stream of the caller's tenant has in common with any stream. `content` is its input.

    Raises:
        InvalidRequest: its webhook may not be called.
    """
    return NewStream(
        external_streams.GENERATOR,
        content,
        metadata or {},
        "fail",
        tenant=principal_of(request).tenant,
        limits=limits,
        webhook=actions.webhook_of(pod_of(request), webhook),
    )


async def create(
    request: Request, new: NewExternal, key: IdempotencyKey | None = None
) -> tuple[Stream, ExternalStream, bool]:
    """Create an open stream; return its rows, and whether it is new or the one of this path or key.

    Raises:
        CreateRateLimited: the caller creates streams faster than it may.
        OlderCodeRunning: a process runs that would take the stream for one that has ended.
        TooManyStreams: the tenant has as many streams that have not ended as it may.
        IdempotencyConflict, Unavailable: see `external_streams.create`.
    """
    tenant, path = principal_of(request).tenant, new.path
    about = {"baton.generator": external_streams.GENERATOR, "baton.tenant": tenant, "url.path": path_of(request)}

    async def is_taken(shard: Shard) -> bool:
        if path is not None and await external_streams.find(shard.pool, tenant, path) is not None:
            return True
        return key is not None and await stream_creation.is_taken(shard.pool, tenant, key)

    if path is not None:
        name: str | None = placement.name_of_path(tenant, path)
    else:
        name = across_databases.name_of(tenant, new.stream.metadata, None if key is None else key.key)
    with tracing.span("create", tracing.here(), kind="server", attributes=about) as span:
        parent = None if span.traceparent is None else str(span.traceparent)
        new = replace(new, stream=replace(new.stream, traceparent=parent))
        stream, external, created = await across_databases.create(
            request, name, lambda shard: _create_in(request, shard, new, key), is_taken
        )
        span.set({"baton.stream.id": str(stream.id), "baton.created": created})
        log_context.enter_stream(stream.id)
        if created:
            known = {"generator": stream.generator, "tenant": tenant, "kind": external.kind}
            logger.info("Stream %s is open.", stream.id, extra=known)
    return stream, external, created


async def _create_in(
    request: Request, shard: Shard, new: NewExternal, key: IdempotencyKey | None
) -> tuple[Stream, ExternalStream, bool]:
    pod = pod_of(request)
    await actions.take_create(request, shard)
    await shard.require_current_code()
    try:
        return await external_streams.create(
            shard.pool, new, key, max_live=pod.settings.max_tenant_streams, counts=shard.live_counts
        )
    except TooManyStreams:
        pod.metrics.rejected["tenant_streams"] += 1
        raise
