"""A client for Python programs: it creates streams, follows them, sends them inputs and cancels them.

Every call may be repeated without an effect of its own: creates and inputs carry an `Idempotency-Key`. So a call whose
response is lost, or that meets a busy or leaving pod, is repeated until it succeeds or the client's patience ends. Any
pod may answer.

A client runs on one event loop. Its calls may run at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias
from urllib.parse import urlsplit
from uuid import UUID

import httpx2
import orjson

from ..backoff import Backoff
from ..errors import AnswerFailed, ClientError, ServiceUnavailable
from .follower import CONNECT_SECONDS, Follower, Received
from .problem import Problem, is_temporary, retry_after_seconds

ENDED: Final = frozenset({"completed", "failed", "cancelled"})
# How long one request waits for a stream's end: less than the timeouts of proxies.
WAIT_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Stream:
    """What a pod says about a stream. `content` has every field, by the names of the native API."""

    id: UUID
    status: str
    content: Mapping[str, Any] = field(repr=False)

    @property
    def ended(self) -> bool:
        """Whether it is completed, failed or cancelled."""
        return self.status in ENDED

    @property
    def text(self) -> str:
        """The text so far; empty if the response did not have it (`create` and `cancel`)."""
        return str(self.content.get("text") or "")

    @property
    def token(self) -> str | None:
        """The token for a browser, if `create` returned one."""
        return self.content.get("token")

    @property
    def events_url(self) -> str:
        """The path at which a browser follows it."""
        return str(self.content["events_url"])

    @property
    def error(self) -> Mapping[str, Any] | None:
        """The code and the message of a failure."""
        return self.content.get("error")

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Read a pod's response."""
        return cls(UUID(content["id"]), content["status"], content)


StreamId: TypeAlias = UUID | str | Stream


class Client:
    """A client of the pods at `base_url`, with an API key or another token as `token`.

        async with Client("https://baton.example.com", token=key) as client:
            stream = await client.create("Hello", generator="agent")
            print(await client.text(stream))

    `http` is a client of httpx2 to use, which you close; without it, this client makes one and closes it.
    `timeout_seconds` bounds one request, and `patience_seconds` all tries of a call: after that it fails with
    `ServiceUnavailable`, or `FollowError` if it follows a stream.

    Each call raises ClientError if it is refused for good, with the `code` and the `status` of the response.

    Raises:
        ValueError: `base_url` is not the address of a service.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        http: httpx2.AsyncClient | None = None,
        timeout_seconds: float = 30,
        patience_seconds: float = 60,
    ) -> None:
        self._base = _checked(base_url).rstrip("/") + "/v1/streams"
        # A token that was read from a file may end with its newline.
        self._headers = {} if token is None else {"authorization": f"Bearer {token.strip()}"}
        self._http = httpx2.AsyncClient() if http is None else http
        self._owns_http = http is None
        self._timeout_seconds = timeout_seconds
        self._patience_seconds = patience_seconds

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the client."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, unless they belong to an `http` that was given."""
        if self._owns_http:
            await self._http.aclose()

    async def create(
        self,
        input: Any,  # noqa: A002 - the name of the field
        *,
        generator: str | None = None,
        metadata: Mapping[str, str | bool | int | float] | None = None,
        on_worker_lost: Literal["continue", "retry", "fail"] | None = None,
        max_duration_seconds: float | None = None,
        idle_timeout_seconds: float | None = None,
        queue_timeout_seconds: float | None = None,
        cancel_when_unwatched_seconds: float | None = None,
        priority: Literal["high", "normal", "low"] | None = None,
        start_after: datetime | None = None,
        webhook: str | None = None,
        token: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Stream:
        """Create a stream and return it. `input` is any JSON; `token` says what the stream's token allows.

        Without an `idempotency_key` each call has one of its own: however often this call repeats its request, it
        creates one stream. With a key, a later call with the same arguments returns the same stream.
        """
        given = {
            "input": input,
            "generator": generator,
            "metadata": None if metadata is None else dict(metadata),
            "on_worker_lost": on_worker_lost,
            "max_duration_seconds": max_duration_seconds,
            "idle_timeout_seconds": idle_timeout_seconds,
            "queue_timeout_seconds": queue_timeout_seconds,
            "cancel_when_unwatched_seconds": cancel_when_unwatched_seconds,
            "priority": priority,
            "start_after": start_after,
            "webhook": webhook,
            "token": None if token is None else dict(token),
        }
        body = {name: value for name, value in given.items() if value is not None or name == "input"}
        return Stream.of(await self._call("POST", "", body=body, key=idempotency_key or _new_key()))

    async def follow(self, stream: StreamId, *, after: int = 0) -> AsyncGenerator[Received, None]:
        """Yield each event after the number `after`, once and in order, to the stream's end.

        A lost connection is a pause: it continues on any pod. Close the generator if you leave it early
        (`contextlib.aclosing`).

        Raises:
            FollowError: the stream is refused for good, or no pod has answered for `patience_seconds`.
        """
        follower = Follower(
            self._http,
            f"{self._base}/{_id(stream)}/events",
            cursor=after,
            patience_seconds=self._patience_seconds,
            headers=self._headers,
        )
        async with contextlib.aclosing(follower.run()) as sightings:
            async for sighting in sightings:
                if isinstance(sighting, Received):
                    yield sighting

    async def text(self, stream: StreamId) -> str:
        """Wait for a stream's end and return its text.

        Raises:
            AnswerFailed: it failed or was cancelled. The error has its code and the text so far.
        """
        ended = await self.wait(stream)
        if ended.status != "completed":
            error = ended.error or {}
            raise AnswerFailed(
                str(error.get("code") or ended.status),
                str(error.get("message") or f"The answer ended as {ended.status}."),
                text=ended.text,
            )
        return ended.text

    async def get(self, stream: StreamId) -> Stream:
        """Return a stream's state and its answer so far."""
        return Stream.of(await self._call("GET", f"/{_id(stream)}"))

    async def wait(self, stream: StreamId, timeout_seconds: float | None = None) -> Stream:
        """Wait for a stream's end; return its state and its answer.

        A stream that waits for people has not ended. After `timeout_seconds` it returns the stream as it is: see
        `ended`.
        """
        until = None if timeout_seconds is None else monotonic() + timeout_seconds
        while True:
            left = WAIT_SECONDS if until is None else min(WAIT_SECONDS, max(0.0, until - monotonic()))
            path = f"/{_id(stream)}?wait={left:.3f}" if left else f"/{_id(stream)}"
            found = Stream.of(await self._call("GET", path, waits_seconds=left))
            if found.ended or (until is not None and monotonic() >= until):
                return found

    async def cancel(self, stream: StreamId) -> Stream:
        """Ask a stream's generator to stop. After its end this changes nothing."""
        return Stream.of(await self._call("POST", f"/{_id(stream)}/cancel"))

    async def send_input(self, stream: StreamId, data: Any, *, idempotency_key: str | None = None) -> int:
        """Send an input to a stream that has not ended: any JSON but null. Return its number.

        Without an `idempotency_key` each call has one of its own: its input is added once, however often this call
        repeats its request.
        """
        path, key = f"/{_id(stream)}/inputs", idempotency_key or _new_key()
        return int((await self._call("POST", path, body={"data": data}, key=key))["number"])

    async def _call(
        self, method: str, path: str, *, body: Any = None, key: str | None = None, waits_seconds: float = 0.0
    ) -> Any:
        """Send a request, again and again while its failure may pass; return the JSON of the response.

        Raises:
            ClientError: it is refused for good.
            ServiceUnavailable: no try succeeded for `patience_seconds`.
        """
        content = None if body is None else orjson.dumps(body)
        headers = self._headers | ({} if key is None else {"idempotency-key": key})
        timeout = httpx2.Timeout(self._timeout_seconds + waits_seconds, connect=CONNECT_SECONDS)
        backoff, began_at = Backoff(), monotonic()
        while True:
            least_seconds, problem, status = 0.0, Problem(None, ""), None
            try:
                response = await self._http.request(
                    method, self._base + path, content=content, headers=headers, timeout=timeout
                )
            except httpx2.TransportError as error:
                problem = Problem(None, str(error) or type(error).__name__)
            else:
                if response.is_success:
                    return _json(response)
                problem, status = Problem.of(response), response.status_code
                if not is_temporary(response):
                    raise ClientError(problem.detail, code=problem.code, status=status)
                least_seconds = retry_after_seconds(response)
            pause_seconds = max(backoff.next_seconds(), least_seconds)
            if monotonic() - began_at + pause_seconds > self._patience_seconds:
                raise ServiceUnavailable(problem.detail, code=problem.code, status=status)
            await asyncio.sleep(pause_seconds)


def _checked(base_url: str) -> str:
    """Return the address. Without its scheme each call would be tried again until the patience ends.

    Raises:
        ValueError: it is not the address of a service.
    """
    parts = urlsplit(base_url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"base_url must look like https://host or https://host/prefix, not {base_url!r:.200}.")
    return base_url


def _new_key() -> str:
    return uuid.uuid4().hex


def _id(stream: StreamId) -> UUID:
    """Return the id of a stream.

    Raises:
        ValueError: the text is no id. It must not become a part of an address.
    """
    if isinstance(stream, Stream):
        return stream.id
    return stream if isinstance(stream, UUID) else UUID(stream)


def _json(response: httpx2.Response) -> Any:
    try:
        return orjson.loads(response.content)
    except ValueError:
        raise ClientError(
            f"The response from {response.url.host} is not JSON. Is the address that of Baton's pods?",
            status=response.status_code,
        ) from None
