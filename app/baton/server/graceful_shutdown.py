"""What `baton serve` does on SIGTERM and SIGINT: it drains the pod, and only then shuts uvicorn down.

uvicorn stops accepting as soon as it gets the signal, and waits for open connections before it ends the application's
lifespan: streams would never end, and clients that reconnect would be refused. So a signal only starts the drain here,
while new connections are still accepted (and sent on). The ordinary shutdown follows. A pod that is mounted in another
application has `pod.mounted_shutdown` instead.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from types import FrameType
from typing import Final

import uvicorn

from ..pod.pod import Pod

logger = logging.getLogger(__name__)

# How long cancelled requests then have to end.
GIVE_UP_SECONDS: Final = 1


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains the pod on the first signal, and ends at once on the second.

    `on_serving` is called when it accepts connections.
    """

    def __init__(
        self, config: uvicorn.Config, pod: Pod, on_serving: Callable[[DrainingServer], None] | None = None
    ) -> None:
        super().__init__(config)
        self.pod = pod
        self._on_serving = on_serving
        self._signals = 0
        self._drain: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept, and then log the address: clients may connect as soon as they see it."""
        await super().startup(sockets)
        for listening in (sockets or [])[:1]:
            logger.info("Pod %s serves on http://%s:%d", self.pod.settings.pod_name, *listening.getsockname()[:2])
        if self._on_serving is not None:
            self._on_serving(self)

    async def on_tick(self, counter: int) -> bool:
        """End the connections whose clients take too long. uvicorn calls this ten times a second.

        If a pod or the worker in its process fails, the other part would hide it: so both leave. So does one process of
        several, which its parent replaces.
        """
        self.pod.tcp_limits.sweep()
        if self.pod.failed and not self.pod.is_alone:
            self.leave()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop, and return when no request uses the pod any more: it is closed next.

        uvicorn cancels the requests that outlast its timeout and does not wait for them. A second signal leaves them
        running. They would find no pod.
        """
        await super().shutdown(sockets)
        left = set(self.server_state.tasks)
        for task in left:
            if not task.cancelling():
                task.cancel()
        if left:
            await asyncio.wait(left, timeout=GIVE_UP_SECONDS)
        # A few may have been accepted while the server closed.
        for connection in list(self.server_state.connections):
            connection.transport.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Schedule the drain: this is uvicorn's signal handler. The process ends with code 0."""
        del sig, frame
        self._loop.call_soon_threadsafe(self._signalled)

    def leave(self) -> None:
        """Begin to drain, unless it does already. A parent process asks for it; its wish is no signal."""
        if self._drain is None:
            self._drain = asyncio.create_task(self._drain_and_exit())

    def hurry(self) -> None:
        """End at once."""
        self.should_exit = self.force_exit = True
        if self.pod.companion is not None:
            self.pod.companion.leave()

    def _signalled(self) -> None:
        self._signals += 1
        self.leave() if self._signals == 1 else self.hurry()

    async def _drain_and_exit(self) -> None:
        await self.pod.drain()
        self.should_exit = True
