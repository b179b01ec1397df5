"""One child process, as its parent sees it: from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

from .assignment import Assignment
from .channel import Channel, Message
from .families import Families

# The child imports from where its parent does, and nothing from its current directory (`-P`) before that.
_PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1])['path']; from baton.processes.child import main; main()"
)
# How long the last messages of a child may take to arrive after its end.
LAST_MESSAGES_SECONDS: Final = 1.0


class Spawned:
    """A child. `ended` waits for its end.

    `silent_ticks` counts the ticks of its parent since it last showed that its event loop runs. Ticks and no time, so
    that no child seems to hang when the whole machine was suspended.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, channel: Channel, on_ask: Callable[[Spawned], None]
    ) -> None:
        self._process = process
        self._channel = channel
        self._on_ask = on_ask
        self._listening = asyncio.create_task(self._listen())
        self._began_at = time.monotonic()
        self._measured: asyncio.Future[dict[str, Families]] | None = None
        self.ready = asyncio.Event()
        self.refusal: str | None = None
        self.silent_ticks = 0

    @classmethod
    async def start(
        cls, assignment: Assignment, listening: socket.socket | None, on_ask: Callable[[Spawned], None]
    ) -> Spawned:
        """Start an interpreter of its own. Its session is its own, too: a Ctrl-C reaches only the parent.

        Raises:
            OSError: the system has no room for a process.
        """
        mine, its = socket.socketpair()
        with contextlib.ExitStack() as on_failure, its:
            on_failure.enter_context(mine)
            passed = [its.fileno(), *([] if listening is None else [listening.fileno()])]
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-c", _PROGRAM, assignment.encode(*passed)),
                stdin=subprocess.DEVNULL,
                pass_fds=passed,
                start_new_session=True,
            )
            mine.setblocking(False)
            on_failure.pop_all()
        return cls(process, await Channel.open(mine), on_ask)

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid

    @property
    def age_seconds(self) -> float:
        """How long ago it was started."""
        return time.monotonic() - self._began_at

    async def ended(self) -> int:
        """Wait for its end, and for the last of its messages; return its exit status, negative for a signal."""
        status = await self._process.wait()
        await asyncio.wait([self._listening], timeout=LAST_MESSAGES_SECONDS)
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        self._channel.close()
        return status

    def leave(self) -> None:
        """Ask it to leave. One that is not ready has no loop that could hear it, perhaps, and gets a signal as well."""
        self._channel.send("leave")
        if not self.ready.is_set():
            self._signal(signal.SIGTERM)

    def hurry(self) -> None:
        """Ask it to leave at once."""
        self._channel.send("hurry")

    def kill(self) -> None:
        """Kill it."""
        self._signal(signal.SIGKILL)

    async def measure(self) -> dict[str, Families]:
        """Return its metrics, by the part of the process: "pod" and "worker". The caller sets a deadline."""
        if self._measured is None:
            self._measured = asyncio.get_running_loop().create_future()
            self._channel.send("measure")
        return await asyncio.shield(self._measured)

    def answer(self, text: str) -> None:
        """Send it the metrics of all processes, which it has asked for."""
        self._channel.send("answer", text=text)

    async def _listen(self) -> None:
        async for message in self._channel.messages():
            self._hear(message)

    def _hear(self, message: Message) -> None:
        self.silent_ticks = 0
        match message["kind"]:
            case "ready":
                self.ready.set()
            case "refused":
                self.refusal = message["sentence"]
            case "ask":
                self._on_ask(self)
            case "measured":
                measured, self._measured = self._measured, None
                if measured is not None and not measured.done():
                    measured.set_result(message["families"])

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
