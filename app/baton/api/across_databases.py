"""What concerns the streams of several databases: which one gets a new stream, lists, chats, and who has a name.

With one database, each of these is one query to it, as if there were no others.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar
from uuid import UUID

from starlette.requests import Request

from ..db import retention, stream_lists, streams
from ..db.postgres import translated
from ..db.stream_lists import Page, StreamFilter
from ..db.streams import Stream
from ..errors import StreamExpired, StreamNotFound, Unavailable
from ..pod import placement
from ..pod.shard import Shard
from .request import key_lifetime_seconds, pod_of, principal_of

Result = TypeVar("Result")

# How long a create without a name waits for one database before it tries another one.
ELSEWHERE_SECONDS: Final = 2.0
# As good as forever: streams of producers may be kept alive for as long as they are read.
_FOREVER: Final = timedelta(days=36_500)


async def create(
    request: Request,
    name: str | None,
    make: Callable[[Shard], Awaitable[Result]],
    is_taken: Callable[[Shard], Awaitable[bool]],
) -> Result:
    """Create something in the home of its name; without a name, in a database by weight, or another one if that fails.

    `is_taken` tells whether a database has the name already. The homes that the name had before are asked first, since
    it may have been used there.

    Raises:
        Unavailable: the home does not answer, or without a name no database does.
    """
    shards = pod_of(request).shards
    if name is None:
        return await _create_anywhere(shards.for_new_streams(), make)
    home, *earlier = shards.homes(name, timedelta(seconds=key_lifetime_seconds(request)))
    for shard in earlier:
        async with translated(shard.pool):
            if await is_taken(shard):
                return await make(shard)
    async with translated(home.pool):
        return await make(home)


async def _create_anywhere(order: Sequence[Shard], make: Callable[[Shard], Awaitable[Result]]) -> Result:
    for shard in order[:-1]:
        try:
            async with translated(shard.pool, min(ELSEWHERE_SECONDS, shard.settings.database_timeout_seconds)):
                return await make(shard)
        except Unavailable:
            shard.note_failure()
    async with translated(order[-1].pool):
        return await make(order[-1])


def homes_of_chat(request: Request, chat: str) -> list[Shard]:
    """Return the databases that may have streams of a chat, the one that gets the next stream first.

    Raises:
        Unavailable: one of them does not answer.
    """
    lifetime = timedelta(days=pod_of(request).settings.retention_days)
    return pod_of(request).shards.homes(placement.name_of_chat(principal_of(request).tenant, chat), lifetime)


def homes_of_path(request: Request, path: str) -> list[Shard]:
    """Return the databases that may have a stream at a path of the Durable Streams protocol.

    Raises:
        Unavailable: one of them does not answer.
    """
    return pod_of(request).shards.homes(placement.name_of_path(principal_of(request).tenant, path), _FOREVER)


async def find(shards: Sequence[Shard], selection: StreamFilter, limit: int) -> Page:
    """Return the newest wanted streams of several databases (see `stream_lists.find`).

    Raises:
        Unavailable: one of them does not answer.
    """
    if len(shards) == 1:
        return await _find(shards[0], selection, limit)
    return stream_lists.merged(await asyncio.gather(*(_find(shard, selection, limit) for shard in shards)), limit)


async def _find(shard: Shard, selection: StreamFilter, limit: int) -> Page:
    async with translated(shard.pool), shard.pool.acquire() as connection:
        return await stream_lists.find(connection, selection, limit)


async def first(shards: Iterable[Shard], look: Callable[[Shard], Awaitable[Result | None]]) -> Result | None:
    """Return what the first database has for which `look` finds anything; None if all answer that they have nothing.

    Raises:
        Unavailable: no other database has it, and this one does not answer.
    """
    failure: Unavailable | None = None
    for shard in shards:
        try:
            async with translated(shard.pool):
                found = await look(shard)
        except Unavailable as error:
            failure = error
        else:
            if found is not None:
                return found
    if failure is not None:
        raise failure
    return None


async def get(request: Request, stream_id: UUID) -> Stream | None:
    """Return the row of a stream of any tenant; None without one."""
    try:
        shard = pod_of(request).shards.of(stream_id)
    except (StreamNotFound, StreamExpired):
        return None
    return await streams.get(shard.pool, stream_id)


async def absence(request: Request, stream_id: UUID) -> StreamExpired | StreamNotFound:
    """Return the error that explains why a stream has no row."""
    try:
        shard = pod_of(request).shards.of(stream_id)
    except (StreamNotFound, StreamExpired) as error:
        return error
    return await retention.absence(shard.pool, stream_id)


async def missing(request: Request, stream_ids: Iterable[UUID]) -> list[UUID]:
    """Return which of these streams have no row."""
    gone: list[UUID] = []
    by_shard: defaultdict[Shard, list[UUID]] = defaultdict(list)
    for stream_id in stream_ids:
        try:
            by_shard[pod_of(request).shards.of(stream_id)].append(stream_id)
        except (StreamNotFound, StreamExpired):
            gone.append(stream_id)
    for shard, those in by_shard.items():
        gone += await streams.missing(shard.pool, those)
    return gone


async def continued_messages(request: Request, stream_ids: Iterable[UUID]) -> dict[UUID, str]:
    """Return the ids of the messages that some streams continue."""
    by_shard: defaultdict[Shard, list[UUID]] = defaultdict(list)
    for stream_id in stream_ids:
        by_shard[pod_of(request).shards.of(stream_id)].append(stream_id)
    found: dict[UUID, str] = {}
    for shard, those in by_shard.items():
        found |= await streams.continued_messages(shard.pool, those)
    return found


def name_of(tenant: str, metadata: Any, key: str | None) -> str | None:
    """Return the name by which a new stream is found again: its chat's, or that of its idempotency key."""
    chat = placement.chat_of(metadata)
    if chat is not None:
        return placement.name_of_chat(tenant, chat)
    return None if key is None else placement.name_of_key(tenant, key)
