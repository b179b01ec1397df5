"""Ends a child whose parent has died.

A thread watches the child's end of the channel, which the kernel closes with the parent, however that ended. Then the
child leaves, as at a signal. If it has not ended in time, perhaps because its event loop is blocked, it is killed: an
orphan would keep the port, and nobody would replace it.

Linux could send a signal instead (`PR_SET_PDEATHSIG`). SIGKILL would cut clients that can be sent away, and no other
signal ends a process whose event loop is blocked.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable


def watch(end: socket.socket, on_loss: Callable[[], object], leave_seconds: float) -> None:
    """Start the thread. When the other end is closed, it calls `on_loss`, and kills this process later."""
    # A copy, because the channel closes its own when the event loop ends.
    copy = end.dup()

    def wait() -> None:
        poll = select.poll()
        poll.register(copy, select.POLLHUP)
        while not any(events & select.POLLHUP for _, events in poll.poll()):
            pass
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            on_loss()
        time.sleep(leave_seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
