"""Hints over a test's database, for parts of pods and workers that are tested alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from baton.db import notifications
from baton.db.notifications import CANCEL_CHANNEL
from baton.db.postgres import Connection, Pool
from baton.hints import opening
from baton.hints.hints import Hints
from baton.hints.transport import HintState, Owner
from baton.settings import Settings


def _ignore(_state: HintState) -> None:
    pass


def _nothing() -> None:
    pass


DEAF = Owner({}, _ignore, _nothing)


def sending(dsn: str, *, count: Callable[[int], None] = lambda _sent: None, **settings: Any) -> Hints:
    """Return hints that hear nothing. They send while their `run()` is awaited."""
    return opening.opened(Settings(database_url=dsn, **settings), DEAF, name="baton test", count=count)


async def notify_cancel(executor: Connection | Pool, stream_id: UUID) -> None:
    await notifications.notify(executor, CANCEL_CHANNEL, [stream_id.hex])
