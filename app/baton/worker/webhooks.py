"""Calls the webhooks of streams that have ended, signed by Standard Webhooks (standardwebhooks.com).

What a call says is read over a connection of its own, so that neither the control loop nor a run waits for it. The id
of a call stays the same, so that a receiver recognizes a call that it has got before.

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
from collections.abc import Callable, Collection, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from uuid import UUID

import orjson

from .. import webhook_addresses
from ..db import webhook_calls
from ..db.postgres import Connection
from ..db.webhook_calls import Postponed, WebhookCall
from ..errors import ConfigurationError
from ..observability import log_context
from ..observability.metrics import WorkerMetrics
from ..settings import Settings
from ..version import __version__
from .durable_calls import FORGET_SECONDS, LEASE_SECONDS, DurableCalls, Hopeless
from .records import Records

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger(__name__)

MOST_OF_A_HOST: Final = 8  # so that a slow receiver does not hold up the others
CALL_SECONDS: Final = 15.0
MOST_TEXT_BYTES: Final = 64 << 10

_READ_SECONDS: Final = 20.0
_LONGEST_PAUSE_SECONDS: Final = 3600.0
_SORTED: Final = orjson.OPT_SORT_KEYS


class _Refused(Exception):
    """A receiver has not accepted a call. `pause_seconds` is what it has asked for, or 0."""

    def __init__(self, reason: str, pause_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.pause_seconds = pause_seconds


class Webhooks(DurableCalls[WebhookCall, Postponed]):
    """The calls of one worker. `on_result` is called when `work` has a result to write.

    Raises:
        ConfigurationError: webhooks are allowed, but nothing can sign their calls.
    """

    def __init__(
        self, settings: Settings, metrics: WorkerMetrics, *, records: Records, on_result: Callable[[], None]
    ) -> None:
        super().__init__(
            left=Postponed(0.0, "The worker left."),
            first_pause_seconds=5.0,
            longest_pause_seconds=_LONGEST_PAUSE_SECONDS,
            on_result=on_result,
        )
        self._keys = [webhook_addresses.key_of(secret.get_secret_value()) for secret in settings.webhook_secrets]
        self._origins = settings.webhook_origins
        if self._origins and not self._keys:
            raise ConfigurationError(
                "BATON_WEBHOOK_URL or BATON_WEBHOOK_HOSTS is set, but BATON_WEBHOOK_SECRETS is not, so calls cannot be "
                "signed. Make a secret with `baton keys webhook-secret`, and give it to the workers and the receivers."
            )
        self._metrics = metrics
        self._records = records
        self._client: httpx2.AsyncClient | None = None
        self._forget_pace.put_off()

    @property
    def enabled(self) -> bool:
        """Whether this worker makes calls."""
        return bool(self._keys)

    def hurry(self) -> None:
        """Look for calls at once: a stream has ended here."""
        if self._keys:
            self._pace.hurry()

    async def aclose(self) -> None:
        """Cancel the calls that are being made, and close their connections."""
        await super().aclose()
        if self._client is not None:
            await self._client.aclose()
            self._client = None
        self._records.close()

    async def _take(self, connection: Connection, most: int) -> Sequence[WebhookCall]:
        hosts = Counter(_host(running.call.url) for running in self._running.values())
        busy = [host for host, count in hosts.items() if count >= MOST_OF_A_HOST]
        return await webhook_calls.take(connection, most, LEASE_SECONDS, busy)

    async def _make(self, call: WebhookCall) -> None:
        body = await self._body(call)
        if body is not None:
            await self._send(call, body)
            self._metrics.webhook_calls.add("delivered")

    async def _body(self, call: WebhookCall) -> bytes | None:
        """Return the body of a call, the same at each try; None if there is nothing to say any more.

        Raises:
            Hopeless: the URL may not be called.
        """
        try:
            allowed = webhook_addresses.origin_of(call.url) in self._origins
        except ValueError:
            allowed = False
        if not allowed:
            raise Hopeless(
                f"{_host(call.url)!r:.100} is in neither BATON_WEBHOOK_HOSTS nor BATON_WEBHOOK_URL of this worker"
            )
        async with asyncio.timeout(_READ_SECONDS):
            content = await self._records.run(
                lambda connection: webhook_calls.content(connection, call.stream_id, MOST_TEXT_BYTES)
            )
        return None if content is None else orjson.dumps(content, option=_SORTED)

    async def _send(self, call: WebhookCall, body: bytes) -> None:
        """Send a call.

        Raises:
            _Refused: the receiver has not accepted it.
            Hopeless: it wants no more calls (410).
            Exception: it cannot be reached, or does not answer in time.
        """
        if self._client is None:
            import httpx2  # only workers that call webhooks need it

            self._client = httpx2.AsyncClient(timeout=CALL_SECONDS, follow_redirects=False)
        async with asyncio.timeout(CALL_SECONDS):
            headers = {
                "content-type": "application/json",
                "user-agent": f"baton/{__version__}",
                **signed_headers(self._keys, call.stream_id, int(time.time()), body),
            }
            # The body of the response is not read: it may have any size.
            async with self._client.stream("POST", call.url, content=body, headers=headers) as response:
                if response.status_code == HTTPStatus.GONE:
                    raise Hopeless("its receiver wants no more calls (410)")
                if not response.is_success:
                    pause = _retry_after_seconds(response.headers.get("retry-after"))
                    raise _Refused(f"the receiver answered {response.status_code}", pause)

    def _postponed(self, call: WebhookCall, error: Exception, pause_seconds: float) -> Postponed:
        self._metrics.webhook_calls.add("failed")
        asked_seconds = error.pause_seconds if isinstance(error, _Refused) else 0.0
        postponed = Postponed(max(pause_seconds, asked_seconds), _reason(error))
        logger.warning(
            "The webhook of stream %s could not be called: %s. Another try follows in %.0f s.",
            call.stream_id,
            postponed.error,
            postponed.seconds,
            extra=log_context.fields_of(call.stream_id),
        )
        return postponed

    def _note_given_up(self, call: WebhookCall, error: Exception) -> None:
        self._metrics.webhook_calls.add("given_up")
        logger.error(
            "The webhook of stream %s is not called any more, after %d tries in %.1f hours: %s. Correct the cause, and "
            "read the stream with `GET /v1/streams/{id}` where its end is needed.",
            call.stream_id,
            call.tries,
            call.age_seconds / 3600,
            _reason(error),
            extra=log_context.fields_of(call.stream_id),
        )

    async def _delete(self, connection: Connection, finished: Collection[UUID]) -> None:
        await webhook_calls.delete(connection, finished)

    async def _postpone(self, connection: Connection, failed: Mapping[UUID, Postponed]) -> None:
        await webhook_calls.postpone(connection, failed)

    async def _forget_old(self, connection: Connection) -> None:
        for stream_id in await webhook_calls.delete_older(connection, FORGET_SECONDS):
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


def _host(url: str) -> str:
    """Return the host of a URL as it stands there, for messages and for `webhook_calls.take`."""
    return urlsplit(url).netloc


def _retry_after_seconds(value: str | None) -> float:
    """Read Retry-After in seconds. A date is not read: the pauses grow anyway."""
    return min(float(value), _LONGEST_PAUSE_SECONDS) if value and value.isascii() and value.isdecimal() else 0.0


def _reason(error: Exception) -> str:
    """Return why a call failed, for the log and the call's row."""
    text = " ".join(str(error).split()).replace("\0", "") or type(error).__name__
    return f"{type(error).__name__}: {text}"[:500] if not isinstance(error, _Refused | Hopeless) else text[:500]
