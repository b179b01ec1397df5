"""Which transport the settings name, and whether it works at a start."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from ..db import notification_delivery
from ..db.postgres import Pool
from ..errors import ConfigurationError
from ..settings import Settings
from .hints import Hints
from .poll import PollTransport
from .postgres import PostgresTransport
from .sender import Sender
from .transport import Owner, Transport


def opened(
    settings: Settings,
    owner: Owner,
    *,
    name: str,
    pool: Pool | None = None,
    count: Callable[[int], None] = lambda _sent: None,
) -> Hints:
    """Return the hints of one process about one database; its owner awaits their `run()`.

    `name` begins the names of its connections, such as "baton pod". Hints are sent over connections of
    `pool`, or over one of their own. `count` is called with the number of messages sent.

    Raises:
        ConfigurationError: what the transport needs is not installed.
    """
    if settings.hints_transport == "poll":
        return Hints(PollTransport(owner, interval_seconds=settings.hints_poll_seconds), None)
    transport = _transport(settings, owner, name)
    sender = Sender(
        settings.dsn,
        transport,
        name=f"{name} notify",
        with_events=settings.notify_payloads,
        prepare=settings.prepare,
        pool=pool,
        count=count,
    )
    return Hints(transport, sender)


async def check(settings: Settings) -> None:
    """Check at a start that notifications arrive, if they are used, and that the database takes writes.

    A NATS server may be away at the start: pods and workers poll until it is there.

    Raises:
        ConfigurationError: notifications do not arrive, or the server is a standby.
    """
    if settings.hints_transport == "postgres":
        await notification_delivery.check_delivery(settings.listen_dsn, settings.dsn)
    else:
        await notification_delivery.check_writable(settings.dsn)


async def reach(settings: Settings, *, timeout_seconds: float) -> tuple[str | None, float]:
    """Send a message over NATS, and receive it; return what went wrong, or None and after how many seconds.

    Raises:
        ConfigurationError: the client of NATS is not installed.
    """
    _nats()
    from .nats_client import FAILURES, deliver

    try:
        seconds = await deliver(settings.hints_servers, settings.hints_credentials, timeout_seconds=timeout_seconds)
    except FAILURES as error:
        return (str(error) or f"no answer within {timeout_seconds:g} s"), 0.0
    return None, seconds


def _nats() -> ModuleType:
    try:
        from . import nats
    except ImportError:
        raise ConfigurationError(
            "BATON_HINTS_URL names a NATS server, which needs another package. Run: pip install 'baton-stream[nats]'"
        ) from None
    return nats


def _transport(settings: Settings, owner: Owner, name: str) -> Transport:
    if settings.hints_transport == "nats":
        nats: Transport = _nats().NatsTransport(
            settings.dsn,
            settings.hints_servers,
            owner,
            credentials=settings.hints_credentials,
            probe_seconds=settings.listen_probe_seconds,
            connect_seconds=settings.database_timeout_seconds,
            name=name,
        )
        return nats
    return PostgresTransport(
        settings.listen_dsn,
        owner,
        probe_seconds=settings.listen_probe_seconds,
        connect_seconds=settings.database_timeout_seconds,
        name=f"{name} listen",
    )
