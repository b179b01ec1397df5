"""Calls the webhooks of streams that have ended, signed by Standard Webhooks (standardwebhooks.com).

A call takes as long as its receiver does, so each is a task of its own. The worker's control loop takes the calls and
writes down their results, over its own connection: `work` never waits for a receiver. What a call says is read over
another connection. All of it runs on the worker's event loop.

A call whose worker dies is taken by another one after the lease. A call that fails is repeated with growing pauses, by
any worker, and given up after a day: its error is in the log. Its id stays the same, so that a receiver recognizes a
call that it has got before.

The URL comes from a stream's creator. It is called only if the operator has listed its origin, also if a pod has
accepted it under other settings. Redirects are not followed, and of a response only the status and Retry-After count.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

import httpx2
import orjson

from .. import webhook_addresses
from ..backoff import Backoff
from ..db import webhook_calls
from ..db.postgres import Connection
from ..db.webhook_calls import Postponed, WebhookCall
from ..errors import ConfigurationError
from ..observability import log_context
from ..observability.metrics import WorkerMetrics
from ..pace import Pace
from ..settings import Settings
from ..version import __version__
from .records import Records

logger = logging.getLogger(__name__)

# How often to look for calls that other processes have left. An end in this worker is followed at once.
LOOK_SECONDS: Final = 1.0
MOST_AT_ONCE: Final = 32
MOST_OF_A_HOST: Final = 8  # so that a slow receiver does not hold up the others
CALL_SECONDS: Final = 15.0
LEASE_SECONDS: Final = 60.0  # longer than a call with its reading, and the time until its result is written
MOST_TEXT_BYTES: Final = 64 << 10

_READ_SECONDS: Final = 20.0
_FIRST_PAUSE_SECONDS: Final = 5.0
_LONGEST_PAUSE_SECONDS: Final = 3600.0
_GIVE_UP_SECONDS: Final = 24 * 3600.0
# Calls that no worker tries, because none has a secret.
_FORGET_SECONDS: Final = 7 * 24 * 3600.0
_FORGET_PACE_SECONDS: Final = 3600.0
_SORTED: Final = orjson.OPT_SORT_KEYS


class _Refused(Exception):
    """A receiver has not accepted a call. `pause_seconds` is what it has asked for, or 0."""

    def __init__(self, reason: str, pause_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.pause_seconds = pause_seconds


class _Gone(Exception):
    """A receiver wants no more calls (410), or may not be called."""


class Webhooks:
    """The calls of one worker. `on_result` is called when `work` has a result to write.

    Raises:
        ConfigurationError: webhooks are allowed, but nothing can sign their calls.
    """

    def __init__(
        self, settings: Settings, metrics: WorkerMetrics, *, records: Records, on_result: Callable[[], None]
    ) -> None:
        self._keys = [webhook_addresses.key_of(secret.get_secret_value()) for secret in settings.webhook_secrets]
        self._origins = settings.webhook_origins
        if self._origins and not self._keys:
            raise ConfigurationError(
                "BATON_WEBHOOK_URL or BATON_WEBHOOK_HOSTS is set, but BATON_WEBHOOK_SECRETS is not, so calls cannot be "
                "signed. Make a secret with `baton keys webhook-secret`, and give it to the workers and the receivers."
            )
        self._metrics = metrics
        self._records = records
        self._on_result = on_result
        self._client: httpx2.AsyncClient | None = None
        self._running: dict[UUID, asyncio.Task[None]] = {}
        self._hosts: Counter[str] = Counter()  # of the running calls
        self._made: set[UUID] = set()  # or given up
        self._failed: dict[UUID, Postponed] = {}
        # A scan takes longer while an old snapshot is open.
        self._pace = Pace(factor=20, least_seconds=LOOK_SECONDS)
        self._forget_pace = Pace(factor=20, least_seconds=_FORGET_PACE_SECONDS)
        self._forget_pace.put_off()

    @property
    def enabled(self) -> bool:
        """Whether this worker makes calls."""
        return bool(self._keys)

    @property
    def running(self) -> int:
        """How many calls are being made."""
        return len(self._running)

    def hurry(self) -> None:
        """Look for calls at once: a stream has ended here."""
        if self._keys:
            self._pace.hurry()

    async def work(self, connection: Connection) -> None:
        """Write the results of calls, and begin the ones that are due."""
        if self._keys:
            await self._write_results(connection)
            free = MOST_AT_ONCE - len(self._running)
            if free and self._pace.due:
                busy = [host for host, count in self._hosts.items() if count >= MOST_OF_A_HOST]
                with self._pace.timed():
                    calls = await webhook_calls.take(connection, free, LEASE_SECONDS, busy)
                for call in calls:
                    self._begin(call)
        if self._forget_pace.due:
            with self._forget_pace.timed():
                await self._forget_old(connection)

    async def leave(self, connection: Connection, timeout_seconds: float) -> None:
        """Make the calls of the streams that have just ended here, and leave to other workers what takes longer."""
        if not self._keys:
            return
        self._pace.hurry()
        await self.work(connection)
        if self._running:
            await asyncio.wait(self._running.values(), timeout=timeout_seconds)
        left = dict.fromkeys(self._running, Postponed(0.0, "The worker left."))
        await self.aclose()
        self._failed |= left
        await self._write_results(connection)

    async def aclose(self) -> None:
        """Cancel the calls that are being made, and close their connections."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()
            self._client = None
        self._records.close()

    def _begin(self, call: WebhookCall) -> None:
        # A call that outlasted its lease is taken again by this worker.
        if call.stream_id in self._running:
            return
        host = urlsplit(call.url).netloc
        task = asyncio.create_task(self._make(call), name=f"webhook {call.stream_id}")
        self._running[call.stream_id] = task
        self._hosts[host] += 1

        def on_done(_task: asyncio.Task[None]) -> None:
            self._running.pop(call.stream_id, None)
            self._hosts[host] -= 1
            if not self._hosts[host]:
                del self._hosts[host]

        task.add_done_callback(on_done)

    async def _make(self, call: WebhookCall) -> None:
        try:
            body = await self._body(call)
            if body is not None:
                await self._send(call, body)
                self._metrics.webhook_calls.add("delivered")
        except _Gone as error:
            self._give_up(call, error)
        except Exception as error:  # noqa: BLE001 - `_note_failure` logs it
            self._note_failure(call, error)
        else:
            self._made.add(call.stream_id)
        self._on_result()

    async def _body(self, call: WebhookCall) -> bytes | None:
        """Return the body of a call, the same at each try; None if there is nothing to say any more.

        Raises:
            _Gone: the URL may not be called.
        """
        try:
            allowed = webhook_addresses.origin_of(call.url) in self._origins
        except ValueError:
            allowed = False
        if not allowed:
            host = urlsplit(call.url).netloc
            raise _Gone(f"{host!r:.100} is in neither BATON_WEBHOOK_HOSTS nor BATON_WEBHOOK_URL of this worker")
        async with asyncio.timeout(_READ_SECONDS):
            content = await self._records.run(
                lambda connection: webhook_calls.content(connection, call.stream_id, MOST_TEXT_BYTES)
            )
        return None if content is None else orjson.dumps(content, option=_SORTED)

    async def _send(self, call: WebhookCall, body: bytes) -> None:
        """Send a call.

        Raises:
            _Refused: the receiver has not accepted it.
            _Gone: it wants no more.
            Exception: it cannot be reached, or does not answer in time.
        """
        if self._client is None:
            self._client = httpx2.AsyncClient(timeout=CALL_SECONDS, follow_redirects=False)
        async with asyncio.timeout(CALL_SECONDS):
            headers = {
                "content-type": "application/json",
                "user-agent": f"baton/{__version__}",
                **signed_headers(self._keys, call.stream_id, int(time.time()), body),
            }
            # The body of the response is not read: it may have any size.
            async with self._client.stream("POST", call.url, content=body, headers=headers) as response:
                if response.status_code == httpx2.codes.GONE:
                    raise _Gone("its receiver wants no more calls (410)")
                if not response.is_success:
                    pause = _retry_after_seconds(response.headers.get("retry-after"))
                    raise _Refused(f"the receiver answered {response.status_code}", pause)

    def _note_failure(self, call: WebhookCall, error: Exception) -> None:
        if call.age_seconds >= _GIVE_UP_SECONDS:
            self._give_up(call, error)
            return
        self._metrics.webhook_calls.add("failed")
        asked = error.pause_seconds if isinstance(error, _Refused) else 0.0
        pause = max(_pause_seconds(call.tries), asked)
        reason = _reason(error)
        self._failed[call.stream_id] = Postponed(pause, reason)
        logger.warning(
            "The webhook of stream %s could not be called: %s. Another try follows in %.0f s.",
            call.stream_id,
            reason,
            pause,
            extra=log_context.fields_of(call.stream_id),
        )

    def _give_up(self, call: WebhookCall, error: Exception) -> None:
        self._metrics.webhook_calls.add("given_up")
        self._made.add(call.stream_id)
        logger.error(
            "The webhook of stream %s is not called any more, after %d tries in %.1f hours: %s. Correct the cause, and "
            "read the stream with `GET /v1/streams/{id}` where its end is needed.",
            call.stream_id,
            call.tries,
            call.age_seconds / 3600,
            _reason(error),
            extra=log_context.fields_of(call.stream_id),
        )

    async def _write_results(self, connection: Connection) -> None:
        """Write the results. They are kept if this fails, and written by the next try."""
        made, failed = set(self._made), dict(self._failed)
        if made:
            await webhook_calls.delete(connection, made)
            self._made -= made
        if failed:
            await webhook_calls.postpone(connection, failed)
            self._failed = {key: value for key, value in self._failed.items() if key not in failed}

    async def _forget_old(self, connection: Connection) -> None:
        for stream_id in await webhook_calls.delete_older(connection, _FORGET_SECONDS):
            logger.error(
                "The webhook of stream %s was never called: no worker has BATON_WEBHOOK_SECRETS. Set it on workers.",
                stream_id,
                extra=log_context.fields_of(stream_id),
            )


def signed_headers(keys: Sequence[bytes], stream_id: UUID, moment: int, body: bytes) -> dict[str, str]:
    """Return the headers of a call: its id, the moment of this try in seconds since 1970, and a signature of each key.

    The id is the same at each try.
    """
    call_id = f"msg_{stream_id.hex}"
    signed = b"%b.%d.%b" % (call_id.encode(), moment, body)
    digests = [hmac.digest(key, signed, hashlib.sha256) for key in keys]
    signatures = " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)
    return {"webhook-id": call_id, "webhook-timestamp": str(moment), "webhook-signature": signatures}


def _pause_seconds(tries: int) -> float:
    """Return how long to wait after a call has failed this often."""
    first_seconds = _FIRST_PAUSE_SECONDS * 2 ** min(tries - 1, 20)
    return Backoff(first_seconds=first_seconds, cap_seconds=_LONGEST_PAUSE_SECONDS).next_seconds()


def _retry_after_seconds(value: str | None) -> float:
    """Read Retry-After in seconds. A date is not read: the pauses grow anyway."""
    return min(float(value), _LONGEST_PAUSE_SECONDS) if value and value.isascii() and value.isdecimal() else 0.0


def _reason(error: Exception) -> str:
    """Return why a call failed, for the log and the call's row."""
    text = " ".join(str(error).split()).replace("\0", "") or type(error).__name__
    return f"{type(error).__name__}: {text}"[:500] if not isinstance(error, _Refused | _Gone) else text[:500]
