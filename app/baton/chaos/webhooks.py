"""The receiver of the streams' webhooks, and the account of the calls that arrived.

It listens on loopback, in chaos' own process, and fails at random: it refuses a call, or takes it and loses the reply.
Each stream that has ended must have a call with its status, whose signature is right. Its calls have one id, and one
body, unless a promotion lost the end.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Final, Self, cast

import httptools
import orjson

from .complaint import Complaint

SECRET_BYTES: Final = 32
REFUSES: Final = 0.1
LOSES_REPLY: Final = 0.1
# How far a call's timestamp may be from now.
TOLERANCE_SECONDS: Final = 300
_NO_CONTENT: Final = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"
_UNAVAILABLE: Final = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A call that arrived: the status that it says, the checksum of its body, and when (`time.monotonic`)."""

    status: str
    body: int
    at: float


class Receiver:
    """Receives calls, and keeps them by stream. Use it as an async context manager."""

    def __init__(self, random: Random) -> None:
        self.secret = f"whsec_{base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()}"
        self.complaints: list[tuple[str, Complaint]] = []  # with the streams
        self.counts: Counter[str] = Counter()
        self.reliable = False  # it fails no more
        self._arrivals: defaultdict[str, list[Arrival]] = defaultdict(list)
        self._random = random
        self._server: asyncio.Server | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Call(self._take), "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()

    @property
    def origin(self) -> str:
        """The origin to list in `BATON_WEBHOOK_HOSTS`."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        """The URL for streams."""
        return f"{self.origin}/webhook"

    def against(self, stream: str, status: str, lost: Callable[[float], bool]) -> list[Complaint]:
        """Compare the calls of a stream with its status, once it has ended and its calls were made.

        `lost` returns whether a promotion may have lost an end that was committed up to a moment.
        """
        arrivals = self._arrivals[stream]
        kept = [item for item in arrivals if not lost(item.at)]
        complaints = [
            Complaint("webhook", 0, f"the stream is {status}, and a call said {item.status}")
            for item in kept
            if item.status != status
        ]
        if len({item.body for item in kept}) > 1:
            complaints.append(Complaint("webhook", 0, f"its {len(kept)} calls have different bodies"))
        if all(item.status != status for item in arrivals):
            complaints.append(Complaint("webhook", 0, f"the stream is {status}, and no call said so"))
        return complaints

    def _take(self, headers: Mapping[str, str], body: bytes) -> bytes | None:
        """Note a call; return the response, or None to lose it."""
        draw = 1.0 if self.reliable else self._random.random()
        if draw < REFUSES:
            self.counts["refused"] += 1
            return _UNAVAILABLE
        if wrong := self._note(headers, body):
            self.complaints.append((headers.get("webhook-id", ""), Complaint("webhook", 0, wrong)))
        if draw < REFUSES + LOSES_REPLY:
            self.counts["reply lost"] += 1
            return None
        return _NO_CONTENT

    def _note(self, headers: Mapping[str, str], body: bytes) -> str:
        """Note a call; return what is wrong with it."""
        if not is_signed(self.secret, headers, body, time.time()):
            return f"the signature is wrong: {dict(headers)}"
        content = orjson.loads(body)
        stream, status = content["data"]["id"], content["data"]["status"]
        self.counts["repeated" if self._arrivals[stream] else "arrived"] += 1
        self._arrivals[stream].append(Arrival(status, zlib.crc32(body), time.monotonic()))
        call_id = f"msg_{stream.replace('-', '')}"
        if (headers["webhook-id"], content["type"]) != (call_id, f"stream.{status}"):
            return f"{headers['webhook-id']} says {content['type']} of {stream}, which is {status}"
        return ""


def is_signed(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> bool:
    """Return whether a call has a signature of this secret, by Standard Webhooks."""
    call_id, moment = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not moment.isdecimal() or abs(int(moment) - now) > TOLERANCE_SECONDS:
        return False
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{call_id}.{moment}.".encode() + body, hashlib.sha256)
    expected = f"v1,{base64.b64encode(digest).decode()}"
    found = headers.get("webhook-signature", "").split(" ")
    return any(hmac.compare_digest(expected.encode(), item.encode()) for item in found)


class _Call(asyncio.Protocol):
    """One request on one connection."""

    def __init__(self, take: Callable[[Mapping[str, str], bytes], bytes | None]) -> None:
        self._take = take
        self._headers: dict[str, str] = {}
        self._body = b""
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Parse what was received."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._close()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body."""
        self._body += body

    def on_message_complete(self) -> None:
        """Answer, or drop the connection."""
        response = self._take(self._headers, self._body)
        if response is not None and self._transport is not None:
            self._transport.write(response)
        self._close()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()
