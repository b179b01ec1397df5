"""How a pod leaves when somebody else's server runs it: in an application that Baton is mounted into.

Such a server is told to stop by a signal, and waits for its open connections before it tells the application. A client
that follows an answer would hold it up until the answer ends. So the pod hears the signal too, and sends its clients
away first. There are two kinds of servers:

- uvicorn, and gunicorn with uvicorn's workers, install a handler in Python. It gets the signal when the clients have
  been sent away, as under `baton serve`: until then the server accepts, so that no client that comes back is refused.
- hypercorn and granian have their event loop hear the signal. Nothing can hold that back: the server stops at once,
  while the pod sends its clients away in half the time.

A process where nothing handles a signal keeps it as it is: tests and scripts end as they would without Baton.

Everything here runs in the thread of the event loop, but for the signal handler, which interrupts the main thread
anywhere, and `leave`, which may be called from anywhere. Both only schedule.
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
# Of the pod's time for sending clients away, where the server does not wait for that: hypercorn gives connections 3 s.
_SHARE_WHILE_STOPPING: Final = 0.5


class Departure:
    """Sends a pod's clients away, once, and has the server's signal handlers wait for it.

    `drain` sends them away, spread over the seconds that it is given: `seconds`, or less.
    """

    def __init__(
        self, drain: Callable[[float], Coroutine[Any, Any, None]], seconds: float, *, on_signals: bool
    ) -> None:
        self._send_away = drain
        self._seconds = seconds
        self._on_signals = on_signals
        self._loop = asyncio.get_running_loop()
        self._drain: asyncio.Task[None] | None = None
        self._hurry: asyncio.Task[None] | None = None  # the same for those that are left, without a pause
        self._behind: dict[int, _Handler] = {}  # the handlers that were there before
        self._held: list[int] = []  # signals that they have not been given
        self._signalled = False
        if on_signals and threading.current_thread() is not threading.main_thread():
            logger.info("Baton hears no signals, as it does not run in the main thread: call `leave()` of its app.")
            self._on_signals = False

    def leave(self) -> None:
        """Begin to send the clients away. It returns at once; any thread, and any signal handler, may call it."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left
            self._loop.call_soon_threadsafe(self._begin)

    async def drain(self) -> None:
        """Send the clients away, and return when that is done; cancelling the caller does not stop it."""
        await asyncio.shield(self._begin())

    def hear(self) -> None:
        """Go in front of the handlers that the server has installed, as clients begin to follow.

        By now servers have installed theirs, and so have applications that handle signals by themselves.
        """
        if not self._on_signals:
            return
        for number in SIGNALS:
            if number not in self._behind and _is_servers(handler := signal.getsignal(number)):
                self._behind[number] = handler  # type: ignore[assignment]
                signal.signal(number, self._on_signal)

    async def close(self) -> None:
        """Put the handlers back, where nobody else has come between, and give up what is under way."""
        for number, handler in self._behind.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, handler)
        self._on_signals = False
        tasks = [task for task in (self._drain, self._hurry) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Hear a signal, between any two instructions of the main thread."""
        try:
            self._loop.call_soon_threadsafe(self._heard, number)
        except RuntimeError:  # the loop is closed, and somebody has kept this handler
            self._behind[number](number, frame)

    def _heard(self, number: int) -> None:
        """Drain on the first signal. With one more the rest leave at once, and the server gets both."""
        self._held.append(number)
        if self._signalled:
            self._hurry = self._hurry or asyncio.create_task(self._send_away(0))
            self._pass_on()
            return
        self._signalled = True
        self._begin().add_done_callback(lambda _drain: self._pass_on())

    def _pass_on(self) -> None:
        held, self._held = self._held, []
        for number in held:
            handler = self._behind[number]
            if not _is_loops(handler):  # which has heard it by itself
                handler(number, None)

    def _begin(self) -> asyncio.Task[None]:
        if self._drain is None:
            share = _SHARE_WHILE_STOPPING if any(map(_is_loops, self._behind.values())) else 1
            self._drain = asyncio.create_task(self._send_away(self._seconds * share))
        return self._drain


def _is_servers(handler: object) -> bool:
    """Whether a handler is a server's or an application's, which end in order: Python's own interrupt."""
    if not callable(handler) or handler is signal.default_int_handler:
        return False
    # What `asyncio.run` installs for Ctrl-C cancels the main task.
    return not (
        isinstance(handler, functools.partial) and isinstance(getattr(handler.func, "__self__", None), asyncio.Runner)
    )


def _is_loops(handler: object) -> bool:
    """Whether it stands in for handlers of an event loop, which hears of signals by a socket."""
    return str(getattr(handler, "__module__", None)).partition(".")[0] in {"asyncio", "uvloop"}
