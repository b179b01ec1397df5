"""The databases of a pod: which one has a stream, and which one gets a new one.

Streams know nothing of each other. So a pod works with each database by itself (see `shard`), and all that it decides
is the choice: by the number in a stream's id, by the home of a name, or by weight.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterator, Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg

from ..db import database_identity, placements
from ..db.database_identity import DatabaseIdentity
from ..db.placements import Placement
from ..db.postgres import translated
from ..errors import ConfigurationError, DatabaseUnreachable, StreamExpired, StreamNotFound, Unavailable
from ..hints.transport import HintState
from ..stream_ids import number_of
from .placement import Placements, by_weight
from .shard import Shard

logger = logging.getLogger(__name__)

# From the best to the worst.
_STATES: Final = (HintState.POLLING, HintState.LISTENING, HintState.DEGRADED, HintState.CONNECTING)

_AWAY: Final = "A part of the service does not answer at the moment. Try again shortly."


class Shards:
    """The shards of a pod by the numbers of their databases."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._by_number = {shard.number: shard for shard in shards}
        self._placements = Placements({shard.number: shard.database.weight for shard in shards})
        self._lists: dict[int, list[Placement]] = {}  # as each database had them when it last answered
        self._identity: DatabaseIdentity | None = None

    def __iter__(self) -> Iterator[Shard]:
        """Yield all shards, by number."""
        return iter(self._by_number.values())

    def __len__(self) -> int:
        """Return how many databases there are."""
        return len(self._by_number)

    @property
    def open(self) -> list[Shard]:
        """The shards whose databases have answered since the start."""
        return [shard for shard in self if shard.is_open]

    @property
    def ready(self) -> bool:
        """Whether a database answers."""
        return any(shard.ready for shard in self)

    @property
    def disk_full(self) -> bool:
        """Whether the disk of a database is full."""
        return any(shard.watch.disk_full for shard in self)

    @property
    def hint_state(self) -> HintState:
        """The state of the hints, where they are worst off."""
        return max((shard.hints.state for shard in self), key=_STATES.index)

    def all_open(self) -> list[Shard]:
        """Return all shards, for what concerns the streams of every database.

        Raises:
            Unavailable: one has not answered yet.
        """
        return [self._usable(shard.number) for shard in self]

    def of(self, stream_id: UUID) -> Shard:
        """Return the shard that has a stream, if there is such a stream.

        Raises:
            StreamNotFound: no database has, or had, the number in the id.
            StreamExpired: its database was removed.
            Unavailable: its database has not answered yet, or this pod does not know it yet.
        """
        number = number_of(stream_id)
        if number in self._by_number:
            return self._usable(number)
        if number not in self._placements.numbers:
            raise StreamNotFound(f"There is no stream {stream_id}.")
        if number in self._placements.weights():
            raise self._away(number)
        raise StreamExpired(f"The stream {stream_id} has expired.")

    def homes(self, name: str, lifetime: timedelta) -> list[Shard]:
        """Return the home of a name, an idempotency key or a chat, then the homes that it had in this time.

        Raises:
            Unavailable: the database of its home does not answer, or this pod does not know it yet.
        """
        if len(self) == 1:
            return list(self)
        first, *earlier = self._placements.homes(name, lifetime)
        return [self._usable(first), *(self._usable(number) for number in earlier if number in self._by_number)]

    def for_new_streams(self) -> list[Shard]:
        """Return the databases for a stream without a name: the one by weight, and then the others, if it fails.

        Raises:
            Unavailable: no database has answered yet.
        """
        if len(self) == 1:
            return list(self)
        weights = self._placements.weights()
        order = [self._by_number[number] for number in by_weight(weights, self._by_number)]
        usable = [shard for shard in order if shard.is_open]
        if not usable:
            raise Unavailable(_AWAY, operator="none of the databases that take new streams answers")
        return sorted(usable, key=lambda shard: not shard.takes_streams)

    async def start(self) -> None:
        """Open all databases, or with several the ones that answer.

        Raises:
            ConfigurationError: none answers, or one does not fit.
        """
        if len(self) == 1:
            (only,) = self
            await only.open()
            return
        opening = {asyncio.create_task(shard.open()): shard for shard in self}
        try:
            await database_identity.wait_for_first(opening)
        finally:
            for task in opening:
                task.cancel()
            results = await asyncio.gather(*opening, return_exceptions=True)
        found = {shard.database.name: result for shard, result in zip(self, results, strict=True)}
        for name, result in found.items():
            if isinstance(result, DatabaseUnreachable):
                logger.warning("The database %r is away: %s", name, result)
            elif isinstance(result, Exception):
                raise ConfigurationError(f"The database {name!r}: {result}") from result
        answered = {name: result for name, result in found.items() if isinstance(result, DatabaseIdentity)}
        if not answered:
            raise DatabaseUnreachable(f"No database answers. {next(iter(found.values()))}")
        database_identity.check_installation(answered)
        self._identity = next(iter(answered.values()))
        await self._read_lists()

    def services(self) -> list[Coroutine[Any, Any, None]]:
        """Return what must run as long as the pod does."""
        services = [service for shard in self for service in shard.services()]
        if len(self) > 1:
            services += [self._keep_reading_lists(), *(shard.open_later(lambda: self._identity) for shard in self)]
        return services

    async def settle(self) -> None:
        """Wait until the last hints are sent, but not for long."""
        await asyncio.gather(*(shard.settle() for shard in self))

    async def leave(self) -> None:
        """Delete the pod's rows."""
        await asyncio.gather(*(shard.leave() for shard in self))

    def _usable(self, number: int) -> Shard:
        shard = self._by_number.get(number)
        if shard is None or not shard.is_open:
            raise self._away(number)
        return shard

    def _away(self, number: int) -> Unavailable:
        if number in self._by_number:
            return Unavailable(_AWAY, operator=f"the database with the number {number} has not answered yet")
        return Unavailable(
            _AWAY,
            operator=f"this pod's BATON_DATABASES has no database with the number {number}, which is in use: restart "
            "it with the current ones",
        )

    async def _keep_reading_lists(self) -> None:
        while True:
            await asyncio.sleep(placements.READ_SECONDS)
            await self._read_lists()

    async def _read_lists(self) -> None:
        await asyncio.gather(*(self._read_list(shard) for shard in self.open))
        self._placements.learn(placements.merged(self._lists.values()))

    async def _read_list(self, shard: Shard) -> None:
        # The lists of the other databases are the same; this one's are read again soon.
        with contextlib.suppress(Unavailable, asyncpg.PostgresError):
            async with translated(shard.pool):
                self._lists[shard.number] = await placements.read(shard.pool)
