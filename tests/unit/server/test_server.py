"""A pod as a process: how it listens, and how it shuts down."""

from __future__ import annotations

import contextlib
import socket

import pytest

from baton.errors import ConfigurationError
from baton.server.listening_socket import bind
from baton.server.serve import warn_if_reachable


def test_pods_can_share_a_port() -> None:
    with contextlib.closing(bind("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        with contextlib.closing(bind("127.0.0.1", port)) as second:
            assert second.getsockname() == first.getsockname()


def test_the_kernel_buffer_of_a_slow_client_is_bounded() -> None:
    with contextlib.closing(bind("127.0.0.1", 0)) as opened:
        assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * 65_536


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_a_warning_says_that_other_machines_can_connect_without_a_key(
    host: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.closing(bind(host, 0)) as opened:
        warn_if_reachable(opened)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warned
    assert caplog.text.count("Anyone who can reach") == warned


@pytest.mark.parametrize("host", ["nosuch.invalid", "192.0.2.1"])
def test_an_address_that_is_not_available_is_an_error(host: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"Cannot listen on {host}:80\d\d: .+\."):
        bind(host, 8099)


def test_a_port_in_use_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(ConfigurationError, match="already in use"):
        bind("127.0.0.1", other.getsockname()[1])
