"""In a demo: kills this worker when the demo's page says so, as if its machine were lost.

Any role of the database may notify. So a kill counts only if a pod has signed it, with a key of the database.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from ..db import history, notifications, signing_keys
from ..db.notifications import KILL_WORKER_CHANNEL
from ..db.postgres import Connection


class KillSwitch:
    """The switch of one worker. The listener's callback notes a kill, and the worker's loop verifies it."""

    def __init__(self, worker_name: str, *, on_kill: Callable[[], None]) -> None:
        self._worker_name = worker_name
        self._on_kill = on_kill
        self._made_at = time.time()
        self._kill: str | None = None

    def note(self, payload: str) -> None:
        """Note a notification if it names this worker; `on_kill` is called then."""
        if notifications.kills(payload, self._worker_name, self._made_at):
            self._kill = payload
            self._on_kill()

    async def obey(self, connection: Connection) -> None:
        """Kill this process if the noted notification is genuine."""
        payload, self._kill = self._kill, None
        if payload is None:
            return
        keys = await signing_keys.read(connection, await history.read(connection))
        if notifications.is_signed(keys, KILL_WORKER_CHANNEL, payload):
            os.kill(os.getpid(), signal.SIGKILL)
