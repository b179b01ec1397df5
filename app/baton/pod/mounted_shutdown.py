"""What a pod does on SIGTERM when it is mounted in another application, under a server that Baton does not start.

`baton serve` has its own: `server.graceful_shutdown`. A server stops on a signal, and waits for its open connections
before it ends the application's lifespan. A client that follows an answer would block it until the answer ends. So the
pod handles the signal first, and sends its clients away. There are two kinds of servers:

- uvicorn, and gunicorn with uvicorn's workers, install a signal handler in Python. The pod calls that handler once the
  clients have been sent away, as under `baton serve`. Until then the server accepts, so no client that reconnects is
  refused.
- hypercorn and granian let their event loop handle the signal. Nothing can delay that: the server stops at once, while
  the pod sends its clients away in half the time.

In a process that handles no signals nothing changes: tests and scripts end as they would without Baton.

Everything here runs in the thread of the event loop, with two exceptions: the signal handler, which interrupts the main
thread anywhere, and `leave`, which any thread may call. Both only schedule.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import threading
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, Final, TypeAlias

logger = logging.getLogger(__name__)

_Handler: TypeAlias = Callable[[int, FrameType | None], Any]

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
# The part of the drain time that is used if the server does not wait for the drain. hypercorn gives connections 3 s.
_SHARE_WHILE_STOPPING: Final = 0.5


class MountedShutdown:
    """Drains a pod once, and delays the server's signal handlers until that is done.

    `drain` sends the clients away, spread over the seconds that it is called with: at most `seconds`.
    """

    def __init__(
        self, drain: Callable[[float], Coroutine[Any, Any, None]], seconds: float, *, on_signals: bool
    ) -> None:
        self._drain_pod = drain
        self._seconds = seconds
        self._on_signals = on_signals
        self._loop = asyncio.get_running_loop()
        self._drain: asyncio.Task[None] | None = None
        self._drain_rest: asyncio.Task[None] | None = None  # of the clients that are left, without a pause
        self._servers: dict[int, _Handler] = {}  # the handlers that this has replaced
        self._held: list[int] = []  # signals that those handlers have not received yet
        self._drains = False  # because of a signal
        if on_signals and threading.current_thread() is not threading.main_thread():
            logger.info(
                "Baton cannot handle signals outside of the main thread. On shutdown, call its application's `leave()`."
            )
            self._on_signals = False

    def leave(self) -> None:
        """Begin to send the clients away, and return at once. Any thread and any signal handler may call it."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, so no client is left
            self._loop.call_soon_threadsafe(self._begin)

    async def drain(self) -> None:
        """Send the clients away, and return when that is done. Cancelling the caller does not stop it."""
        await asyncio.shield(self._begin())

    def install(self) -> None:
        """Replace the server's signal handlers, if it has any. Call it when a client is about to follow.

        By then the server has installed its handlers, and so has an application that handles signals itself.
        """
        if not self._on_signals:
            return
        for number in SIGNALS:
            if number not in self._servers and _belongs_to_server(handler := signal.getsignal(number)):
                self._servers[number] = handler  # type: ignore[assignment]
                signal.signal(number, self._on_signal)

    async def close(self) -> None:
        """Restore the server's handlers, unless others have replaced this one, and cancel a drain in progress."""
        for number, handler in self._servers.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, handler)
        self._on_signals = False
        tasks = [task for task in (self._drain, self._drain_rest) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Schedule the drain. This interrupts the main thread between any two instructions."""
        try:
            self._loop.call_soon_threadsafe(self._signalled, number)
        except RuntimeError:  # the loop is closed, and other code has kept this handler
            self._servers[number](number, frame)

    def _signalled(self, number: int) -> None:
        """Drain on the first signal. On a second one the rest leave at once, and the server gets both signals."""
        self._held.append(number)
        if self._drains:
            self._drain_rest = self._drain_rest or asyncio.create_task(self._drain_pod(0))
            self._pass_on()
            return
        self._drains = True
        self._begin().add_done_callback(lambda _drain: self._pass_on())

    def _pass_on(self) -> None:
        held, self._held = self._held, []
        for number in held:
            handler = self._servers[number]
            if not _belongs_to_event_loop(handler):  # an event loop gets the signal in its own way
                handler(number, None)

    def _begin(self) -> asyncio.Task[None]:
        if self._drain is None:
            share = _SHARE_WHILE_STOPPING if any(map(_belongs_to_event_loop, self._servers.values())) else 1
            self._drain = asyncio.create_task(self._drain_pod(self._seconds * share))
        return self._drain


def _belongs_to_server(handler: object) -> bool:
    """Whether a handler belongs to a server or an application. Python's own handlers only interrupt."""
    if not callable(handler) or handler is signal.default_int_handler:
        return False
    # What `asyncio.run` installs for Ctrl-C cancels the main task.
    return not (
        isinstance(handler, functools.partial) and isinstance(getattr(handler.func, "__self__", None), asyncio.Runner)
    )


def _belongs_to_event_loop(handler: object) -> bool:
    """Whether a handler is an event loop's placeholder: the loop receives signals through a socket."""
    return str(getattr(handler, "__module__", None)).partition(".")[0] in {"asyncio", "uvloop"}
