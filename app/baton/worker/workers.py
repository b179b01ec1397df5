"""The workers of one process: one for each database that it serves, which share its capacity.

Databases know nothing of each other, and neither do their workers: each has a lease, claims and connections of its own.
With several databases the process works with those that answer, and a worker begins when its database does. One that
loses its database later keeps trying by itself (see `worker`).

All of it runs on one event loop. A thread beside it watches the loop (see `watchdog`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from ..backoff import Backoff
from ..db import database_identity
from ..db.database_identity import DatabaseIdentity
from ..db.reconnecting import FAILURES
from ..errors import ConfigurationError, DatabaseUnreachable
from ..generators import Generator
from ..observability import log_context
from ..observability.metrics import WorkerMetrics
from ..settings import Settings
from .database_check import check_database
from .host import Host
from .side_thread import SideThread
from .worker import Worker

logger = logging.getLogger(__name__)

# Between two checks of a database that does not fit: somebody has to correct it.
UNFIT_SECONDS: Final = 60.0


class Workers:
    """Run until cancelled, or until `leave()` was called and all streams have ended or were handed over.

    `ready` is set once one of them claims streams.
    """

    def __init__(self, settings: Settings, generators: Mapping[str, Generator]) -> None:
        """Import the end hook, if the settings name one.

        Raises:
            ConfigurationError: no database is configured, the end hook cannot be used, or calls of webhooks cannot be
                signed.
        """
        self._settings = settings
        databases = settings.worker_entries
        self._host = Host(settings, generators)
        self._databases = {Worker(settings.of(database), self._host, database.name): database for database in databases}
        self._identities: dict[str, DatabaseIdentity] = {}  # of the databases that have answered
        self._opening: set[asyncio.Task[None]] = set()
        self._leaving = False
        self.ready = self._host.ready

    @property
    def all(self) -> tuple[Worker, ...]:
        """The workers, by the numbers of their databases."""
        return tuple(self._databases)

    @property
    def metrics(self) -> WorkerMetrics:
        """The metrics of the process."""
        return self._host.metrics

    async def run(self) -> None:
        """Claim and run streams of all databases.

        Raises:
            ConfigurationError: no database can be reached at the start, or one that answers does not fit.
        """
        for remark in self._settings.remarks:
            logger.warning(remark)
        await self._start()
        watching = asyncio.create_task(SideThread(self._host.watchdog.run).run(), name="watchdog")
        working = {asyncio.create_task(self._work(worker), name=f"worker {worker.database}") for worker in self.all}
        try:
            pending = set(working)
            while pending:
                done, _ = await asyncio.wait({watching, *pending}, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if not task.cancelled():  # `leave` cancels one that waits for its database
                        task.result()
                pending -= done
        finally:
            for task in (watching, *working):
                task.cancel()
            await asyncio.gather(watching, *working, return_exceptions=True)

    def leave(self) -> None:
        """Stop claiming in all databases at once, hand the streams over, and let `run()` return: see `Worker.leave`."""
        self._leaving = True
        for task in self._opening:
            task.cancel()
        for worker in self.all:
            worker.leave()

    async def _start(self) -> None:
        """Check the databases; with several, those that answer now.

        Raises:
            ConfigurationError: none answers, or one does not fit.
        """
        if len(self._databases) == 1:
            ((worker, database),) = self._databases.items()
            self._identities[database.name] = await check_database(worker.settings, database)
            return
        checks = {
            database.name: asyncio.create_task(check_database(worker.settings, database))
            for worker, database in self._databases.items()
        }
        try:
            await database_identity.wait_for_first(checks.values())
        finally:
            for task in checks.values():
                task.cancel()
            await asyncio.gather(*checks.values(), return_exceptions=True)
        failures = {name: task.exception() for name, task in checks.items() if not task.cancelled()}
        for name, error in failures.items():
            if isinstance(error, ConfigurationError) and not isinstance(error, DatabaseUnreachable):
                raise ConfigurationError(f"The database {name!r}: {error}") from error
            if error is not None and not isinstance(error, FAILURES):
                raise error
        self._identities = {name: checks[name].result() for name, error in failures.items() if error is None}
        if not self._identities:
            reasons = " ".join(f"{name!r}: {error}" for name, error in failures.items())
            raise DatabaseUnreachable(f"No database answers. {reasons}")
        database_identity.check_installation(self._identities)

    async def _work(self, worker: Worker) -> None:
        log_context.enter_database(worker.database)
        if worker.database not in self._identities:
            task = asyncio.current_task()
            assert task is not None
            self._opening.add(task)
            try:
                await self._open(worker)
            finally:
                self._opening.discard(task)
        await worker.run()

    async def _open(self, worker: Worker) -> None:
        """Wait until a database answers and fits, or `leave` is called."""
        backoff = Backoff()
        while not self._leaving:
            try:
                await self._check_later(worker)
            except FAILURES as error:
                if isinstance(error, ConfigurationError) and not isinstance(error, DatabaseUnreachable):
                    logger.critical("The database %r cannot be used: %s", worker.database, error)
                    await asyncio.sleep(UNFIT_SECONDS)
                else:
                    logger.warning("The database %r is away: %s", worker.database, error)
                    await backoff.sleep()
            else:
                logger.info("The database %r answers.", worker.database)
                return

    async def _check_later(self, worker: Worker) -> None:
        identity = await check_database(worker.settings, self._databases[worker])
        database_identity.check_installation({**self._identities, worker.database: identity})
        self._identities[worker.database] = identity
