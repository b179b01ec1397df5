"""Connections to NATS: the client library, with two of its methods replaced, and a check that messages arrive."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import nats.errors
from nats.aio.client import Client

from ..db import reconnecting
from ..db.notifications import MAX_BYTES

# How all subjects begin.
ROOT: Final = "baton"
CLOSE_SECONDS: Final = 1

# After these another connection may work.
FAILURES: Final = (*reconnecting.FAILURES, nats.errors.Error, TimeoutError, OSError)


class NatsClient(Client):
    """The library's client with two changes, each of a method that it calls itself.

    It sends nothing in plain text to a server that was given as `tls://`. And it calls the handlers of subjects
    directly: the library has a queue and a task for each subscription, which cost half of a pod's time for a message.
    """

    def __init__(self, *, secure: bool) -> None:
        super().__init__()
        self._secure = secure
        self.handlers: dict[bytes, Callable[[str], None]] = {}

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        # The library upgrades the connection only if the server asks, and anyone in between can remove that.
        if self._secure and initial_connection and not info.get("tls_required"):
            raise nats.errors.SecureConnRequiredError
        await super()._process_info(info, initial_connection=initial_connection)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        handler = self.handlers.get(subject)
        # Postgres bounds its payloads too. Nobody honest sends a longer one.
        if handler is not None and len(data) <= MAX_BYTES:
            handler(data.decode(errors="replace"))


async def connected(
    servers: Sequence[str],
    credentials: Path | None,
    *,
    name: str,
    timeout_seconds: float,
    ping_seconds: float = 5,
    on_error: Callable[[Exception], Awaitable[None]],
    on_close: Callable[[], Awaitable[None]] | None = None,
) -> NatsClient:
    """Return a connection to one of the servers. It is not replaced when it is lost.

    Raises:
        nats.errors.Error, OSError, TimeoutError: none answers, or it refuses the credentials.
    """
    client = NatsClient(secure=any(server.startswith("tls:") for server in servers))
    refusals: list[Exception] = []

    async def note(error: Exception) -> None:
        if client.is_connected:
            await on_error(error)
        else:
            refusals.append(error)

    try:
        async with asyncio.timeout(timeout_seconds):
            await client.connect(
                list(servers),
                name=name,
                user_credentials=None if credentials is None else str(credentials),
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=max(1, int(timeout_seconds)),
                ping_interval=max(1, int(ping_seconds)),
                max_outstanding_pings=1,
                skip_subject_validation=True,
                error_cb=note,
                closed_cb=on_close,
            )
    except nats.errors.NoServersError:
        await close(client)
        raise refusals[-1] if refusals else nats.errors.NoServersError from None
    except BaseException:
        await close(client)
        raise
    return client


async def close(client: NatsClient) -> None:
    """Close a connection, also one to a server that does not read."""
    with contextlib.suppress(*FAILURES):
        async with asyncio.timeout(CLOSE_SECONDS):
            await client.close()


async def deliver(servers: Sequence[str], credentials: Path | None, *, timeout_seconds: float) -> float:
    """Send a message over one connection, and wait until another receives it; return after how many seconds.

    Raises:
        any of `FAILURES`: it does not arrive.
    """
    problems: list[Exception] = []

    async def note(error: Exception) -> None:
        problems.append(error)

    subject, heard = f"{ROOT}.check.{secrets.token_hex(8)}", asyncio.Event()

    async with contextlib.AsyncExitStack() as stack:
        ends = []
        for name in ("baton check", "baton check listen"):
            client = await connected(servers, credentials, name=name, timeout_seconds=timeout_seconds, on_error=note)
            stack.push_async_callback(close, client)
            ends.append(client)
        ends[1].handlers[subject.encode()] = lambda _payload: heard.set()
        await ends[1].subscribe(subject)
        await ends[1].flush(max(1, int(timeout_seconds)))
        sent_at = time.monotonic()
        await ends[0].publish(subject)
        try:
            async with asyncio.timeout(timeout_seconds):
                await heard.wait()
        except TimeoutError:
            raise problems[-1] if problems else TimeoutError from None
        return time.monotonic() - sent_at
