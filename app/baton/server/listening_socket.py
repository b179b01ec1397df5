"""The socket that a pod listens on."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterator
from typing import Final

from ..errors import ConfigurationError

# What the kernel buffers for a client that does not read. The default would be megabytes.
SEND_BUFFER_BYTES: Final = 65_536
ACCEPTS_PER_TURN: Final = 32
# Seconds of silence until the first probe, seconds between two, and how many may stay unanswered.
KEEPALIVE: Final = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


def bind(host: str, port: int, give_up_seconds: float = 0) -> socket.socket:
    """Open the listening socket. On Linux several pods may share one port, and the kernel spreads the connections.

    The kernel closes the connection of a client that acknowledges nothing for `give_up_seconds`, or no probe during a
    minute of silence.

    Raises:
        ConfigurationError: the address is not available.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as on_failure:
            opened = on_failure.enter_context(socket.socket(family, kind, protocol))
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "SO_REUSEPORT"):
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in {**KEEPALIVE, "TCP_USER_TIMEOUT": int(give_up_seconds * 1000)}.items():
                if hasattr(socket, name):
                    opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            opened.bind(address)
            on_failure.pop_all()
    except OSError as error:
        raise ConfigurationError(f"Cannot listen on {host}:{port}: {error.strerror or error}.") from None
    return opened


@contextlib.contextmanager
def accepting_many(listening: socket.socket) -> Iterator[list[socket.socket]]:
    """Duplicate the listening socket, so that the event loop accepts many connections in each turn.

    uvloop accepts one connection per socket and turn. When all clients of another pod arrive at once, each turn takes
    long, and each client would wait in the kernel's queue for one turn per client before it.
    """
    with contextlib.ExitStack() as stack:
        copies = [stack.enter_context(contextlib.closing(listening.dup())) for _ in range(ACCEPTS_PER_TURN - 1)]
        yield [listening, *copies]


def is_loopback(listening: socket.socket) -> bool:
    """Whether only this machine can connect."""
    host: str = listening.getsockname()[0]
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback
