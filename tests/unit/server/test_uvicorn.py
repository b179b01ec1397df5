"""What Baton relies on in uvicorn, beyond what uvicorn documents: why `pyproject.toml` bounds its version above.

Before the bound is raised, these must pass, and all tests of `tests/unit/server`, `tests/integration/server` and
`tests/unit/pod/test_tcp_limits.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from packaging.requirements import Requirement
from tests.support.logbook import DEADLINE_SECONDS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

# What `HttpProtocol` overrides, and uvicorn or httptools call.
CALLED = (
    *("connection_made", "connection_lost", "data_received", "send_400_response"),
    *("on_message_begin", "on_url", "on_header", "on_headers_complete", "on_body", "on_message_complete"),
    "on_response_complete",
)
# What it reads, sets or calls.
OF_A_PROTOCOL = (
    *("access_log", "cycle", "flow", "headers", "parser", "scope", "server_state", "transport", "url"),
    "_unset_keepalive_if_required",
)
OF_A_CYCLE = (
    *("body", "chunked_encoding", "disconnected", "flow", "keep_alive", "message_event", "more_body"),
    *("response_complete", "response_started", "scope", "transport"),
)
OF_A_SERVER = ("force_exit", "server_state", "should_exit")
OVERRIDDEN_OF_A_SERVER = ("capture_signals", "handle_exit", "on_tick", "serve", "shutdown", "startup")


def test_the_version_of_uvicorn_is_bounded_above() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    (needed,) = [item for item in map(Requirement, project["dependencies"]) if item.name == "uvicorn"]
    assert {item.operator for item in needed.specifier} == {">=", "<"}
    assert metadata.version("uvicorn") in needed.specifier


async def test_a_protocol_and_a_cycle_have_the_attributes_that_baton_uses() -> None:
    seen: list[HttpToolsProtocol] = []

    class Seen(HttpToolsProtocol):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            seen.append(self)

    async def app(_scope: Any, _receive: Any, send: Callable[..., Any]) -> None:
        protocol = seen[0]
        assert [name for name in OF_A_PROTOCOL if not hasattr(protocol, name)] == []
        assert [name for name in OF_A_CYCLE if not hasattr(protocol.cycle, name)] == []
        assert isinstance(protocol.cycle, RequestResponseCycle)
        # The headers are checked while they arrive, and the scope has the same list.
        assert protocol.scope["headers"] is protocol.headers
        # A chunk that is written directly depends on this attribute.
        assert protocol.cycle.chunked_encoding is None
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert protocol.cycle.chunked_encoding is True
        await send({"type": "http.response.body", "body": b"all is there"})

    config = uvicorn.Config(app, http=Seen, lifespan="off", log_config=None, proxy_headers=False)
    config.load()
    state = uvicorn.server.ServerState()
    assert (state.connections, state.tasks) == (set(), set())
    loop = asyncio.get_running_loop()
    async with await loop.create_server(
        lambda: Seen(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    ) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), DEADLINE_SECONDS)
        writer.close()
    assert b"all is there" in answer


def test_a_protocol_is_called_by_the_names_that_baton_overrides() -> None:
    assert [name for name in CALLED if not callable(getattr(HttpToolsProtocol, name, None))] == []


async def test_a_server_has_the_methods_that_baton_overrides() -> None:
    server = uvicorn.Server(uvicorn.Config("none:none", log_config=None))
    assert [name for name in (*OF_A_SERVER, *OVERRIDDEN_OF_A_SERVER) if not hasattr(server, name)] == []
    assert list(inspect.signature(uvicorn.Server.shutdown).parameters) == ["self", "sockets"]
    assert list(inspect.signature(uvicorn.Server.startup).parameters) == ["self", "sockets"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_installs_its_signal_handlers_before_its_application_starts(
    number: signal.Signals,
) -> None:
    """So a mounted Baton can replace them (see `pod.mounted_shutdown`)."""
    found: list[object] = []

    async def app(scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        assert scope["type"] == "lifespan"
        await receive()
        found.append(signal.getsignal(number))
        await send({"type": "lifespan.startup.failed", "message": "that was all"})

    server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None, port=0))
    with contextlib.suppress(SystemExit):
        server.run()
    assert found == [server.handle_exit]
