"""Where an event stream writes: a `Sink`. There are two kinds of sinks.

- `AsgiSink` works on every ASGI server. It writes by `send`, and a task that waits on `receive` notices that the client
  has left. It cannot end a connection in the middle of a response: there the response has to fail.
- `DirectSink` is for a server that offers its socket in the extension `baton.direct`. It can write without waiting,
  needs no task to notice that the client has left, and can close or abort the connection.

A sink belongs to the task that made it. Every method runs on the pod's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, Protocol

from starlette.types import Receive, Scope, Send

DIRECT_EXTENSION: Final = "baton.direct"

OnLost = Callable[[], None]


class DirectSocket(Protocol):
    """The client's socket, as a server offers it to the response that it is writing."""

    def write(self, body: bytes) -> bool:
        """Write a chunk of the response and return True.

        Return False, with nothing written, if the response has ended or the client has not taken most of what was sent.
        """
        ...

    def on_lost(self, on_lost: OnLost) -> bool:
        """Call back when the connection is lost, at once if it already is, and return True.

        Return False where a part of the request is yet to come: then only `receive` notices the loss.
        """
        ...

    def close(self) -> None:
        """Close the connection once the client has taken what was sent."""
        ...

    def abort(self) -> None:
        """Drop the connection at once, and everything that was not sent yet."""
        ...


class Sink(Protocol):
    """Writes the body of one response. What it writes arrives in order."""

    @property
    def cuts(self) -> bool:
        """Whether it can end the connection in the middle of the response, by `close` or `abort`."""
        ...

    def write(self, body: bytes) -> bool:
        """Write a chunk at once and return True. Return False, with nothing written, if the caller has to `send` it."""
        ...

    async def send(self, body: bytes, *, last: bool = False) -> None:
        """Write a chunk, and wait until the client has taken most of what was sent. The `last` ends the response."""
        ...

    def on_lost(self, on_lost: OnLost) -> None:
        """Call back when the connection is lost, perhaps more than once; if it already is, call back at once."""
        ...

    def close(self) -> None:
        """Close the connection once the client has taken what was sent. Call it only if it `cuts`."""
        ...

    def abort(self) -> None:
        """Drop the connection at once. A sink that does not cut cancels the response's task instead."""
        ...

    async def release(self) -> None:
        """Stop watching the connection, and forget the callback."""
        ...


class AsgiSink:
    """Writes by what every ASGI server offers."""

    __slots__ = ("_on_lost", "_receive", "_send", "_task", "_watcher")
    cuts = False  # ASGI has no message that cuts a response

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._task = asyncio.current_task()
        self._on_lost: OnLost | None = None
        self._watcher: asyncio.Task[None] | None = None

    def write(self, body: bytes) -> bool:
        """Return False: it always has to wait for the server."""
        return False

    async def send(self, body: bytes, *, last: bool = False) -> None:
        """Send a chunk to the server, which returns when the client has taken enough."""
        try:
            await self._send({"type": "http.response.body", "body": body, "more_body": not last})
        except OSError:
            # Servers may raise it if the client has left.
            if self._on_lost is not None:
                self._on_lost()

    def on_lost(self, on_lost: OnLost) -> None:
        """Call back when the client has left, as `receive` says."""
        self._on_lost = on_lost
        self._watcher = asyncio.create_task(self._watch(on_lost))

    def close(self) -> None:
        """Never called."""
        raise NotImplementedError

    def abort(self) -> None:
        """Cancel the task of the response: the server drops the connection of a response that fails."""
        if self._task is not None:
            self._task.cancel()

    async def release(self) -> None:
        """Cancel the task that watches the connection, and break the reference cycle with the event stream."""
        self._on_lost = None
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher

    async def _watch(self, on_lost: OnLost) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        on_lost()


class DirectSink(AsgiSink):
    """Writes to the client's socket if that needs no waiting, and otherwise by ASGI."""

    __slots__ = ("_socket",)
    cuts = True

    def __init__(self, socket: DirectSocket, receive: Receive, send: Send) -> None:
        super().__init__(receive, send)
        self._socket = socket

    def write(self, body: bytes) -> bool:
        """Write a chunk to the socket, if the socket accepts it now."""
        return self._socket.write(body)

    def on_lost(self, on_lost: OnLost) -> None:
        """Let the server call back. If a part of the request is yet to come, a task has to watch."""
        if self._socket.on_lost(on_lost):
            self._on_lost = on_lost
        else:
            super().on_lost(on_lost)

    def close(self) -> None:
        """Close the socket once the client has taken what was sent."""
        self._socket.close()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._socket.abort()


def sink_of(scope: Scope, receive: Receive, send: Send) -> Sink:
    """Return the sink of a response whose header has been sent. Call it in the response's task."""
    socket: DirectSocket | None = scope.get("extensions", {}).get(DIRECT_EXTENSION)
    return AsgiSink(receive, send) if socket is None else DirectSink(socket, receive, send)
