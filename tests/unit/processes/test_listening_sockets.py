"""The listening sockets of several processes."""

from __future__ import annotations

import socket

import pytest

from baton.errors import ConfigurationError
from baton.processes.listening_sockets import HAS_SPREADING, ListeningSockets
from baton.server.listening_socket import bind


def address(listening: socket.socket) -> tuple[str, int]:
    host, port = listening.getsockname()[:2]
    return host, port


@pytest.mark.skipif(not HAS_SPREADING, reason="the kernel does not spread connections over sockets here")
def test_each_process_gets_a_socket_of_its_own_and_the_parent_accepts_nothing() -> None:
    with ListeningSockets.open("127.0.0.1", 0, 0) as sockets:
        with sockets.for_child() as first, sockets.for_child() as second:
            assert first.fileno() != second.fileno()
            assert address(first) == address(second)
            where = address(first)
            first.listen()
            with socket.create_connection(where):
                first.accept()[0].close()
        # Both are closed, as when their processes have died. The address stays, and refuses.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(where)
        with sockets.for_child() as again:
            assert address(again) == where


def test_where_the_kernel_does_not_spread_connections_all_share_one_socket() -> None:
    with bind("127.0.0.1", 0) as bound:
        sockets = ListeningSockets(bound, 0, one_each=False)
        with sockets.for_child() as first:
            assert first is bound
        with sockets.for_child() as second:
            second.listen()
            with socket.create_connection(address(second)):
                first.accept()[0].close()


def test_an_address_in_use_is_a_mistake_of_the_user() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(ConfigurationError, match="Cannot listen on"):
        ListeningSockets.open("127.0.0.1", address(other)[1], 0).__enter__()
