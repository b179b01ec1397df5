"""The listening socket of each child. The parent binds all of them, and listens on none.

On Linux each child has a socket of its own on the shared port, and the kernel spreads connections over those that
listen, by a hash of their addresses. With one socket for all, the processes that wake first accept most: in bursts, one
of four got up to half of the clients. The price is that the queue of a socket belongs to one process. So the parent
keeps no copy: when a child dies, the kernel closes its socket and gives it no more connections, and the next child gets
a new one. A child listens only once it can serve.

Elsewhere the kernel does not spread connections over sockets, and the children share one.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from typing import Final, Self

from ..server.listening_socket import bind

HAS_SPREADING: Final = sys.platform == "linux"


class ListeningSockets:
    """Makes the sockets of children. A bound socket that does not listen keeps the address while no child has one."""

    def __init__(self, bound: socket.socket, give_up_seconds: float, *, one_each: bool = HAS_SPREADING) -> None:
        self._bound = bound
        self._give_up_seconds = give_up_seconds
        self._one_each = one_each

    @classmethod
    @contextlib.contextmanager
    def open(cls, host: str, port: int, give_up_seconds: float) -> Iterator[Self]:
        """Bind the address; with the port 0, a free one.

        Raises:
            ConfigurationError: it is not available.
        """
        with contextlib.closing(bind(host, port, give_up_seconds)) as bound:
            yield cls(bound, give_up_seconds)

    @contextlib.contextmanager
    def for_child(self) -> Iterator[socket.socket]:
        """Yield a socket for a child to inherit inside the block."""
        if not self._one_each:
            yield self._bound
            return
        host, port = self._bound.getsockname()[:2]
        with contextlib.closing(bind(host, port, self._give_up_seconds)) as own:
            yield own
