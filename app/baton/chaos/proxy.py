"""A TCP proxy in front of Postgres that can hold, delay, drop and cut what passes through it."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Final, Self
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

CHUNK_BYTES: Final = 65_536
_ENCRYPTED: Final = {"require", "verify-ca", "verify-full"}
# The message with the pid of a client's backend (BackendKeyData), in the wire protocol of Postgres.
_BACKEND_KEY: Final = b"K\x00\x00\x00\x0c"


class Proxy:
    """Forwards connections to the server of a DSN; `dsn` leads through the proxy. Use it as an async context manager.

    Each direction has a gate of its own: replies can be held while requests pass, so that a commit takes place and its
    reply does not arrive.
    """

    def __init__(self, dsn: str) -> None:
        self._upstream = dsn
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._requests = _open_gate()
        self._replies = _open_gate()
        self._accepting = _open_gate()
        self._generation = 0
        self._delay_seconds = 0.0
        self.backends: set[int] = set()  # the pids behind the open connections, if these are not encrypted
        self.accepted = 0
        self.holding = 0  # how many directions hold data back
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)
        self.cut()
        await self._server.wait_closed()

    @property
    def dsn(self) -> str:
        """The DSN of the same database through this proxy."""
        parts = urlsplit(self._upstream)
        user = parts.netloc.rpartition("@")[0] or "postgres"
        query = {name: value for name, value in parse_qsl(parts.query) if name not in {"host", "port"}}
        # The server's certificate is for another host name; on a Unix socket there is none.
        if query.get("sslrootcert") == "system":
            del query["sslrootcert"]
        query["sslmode"] = "require" if query.get("sslmode") in _ENCRYPTED else "disable"
        return urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{self.port}", query=urlencode(query)))

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._writers) // 2

    def hold_replies(self) -> None:
        """Hold what the server sends. Requests still reach it."""
        self._replies.clear()

    def stall(self) -> None:
        """Hold everything in both directions, as a network that drops all packets. New connections hang too."""
        self._requests.clear()
        self._replies.clear()
        self._accepting.clear()

    def blackhole(self) -> None:
        """Drop what open connections send from now on, without closing them. New connections hang until `resume`."""
        self._generation += 1
        self._accepting.clear()

    def refuse(self) -> None:
        """Make new connections hang until `resume`. Open connections continue."""
        self._accepting.clear()

    def delay(self, seconds: float) -> None:
        """Delay everything by this much, in both directions."""
        self._delay_seconds = seconds

    def resume(self) -> None:
        """Forward what was held, and then everything else without delay."""
        self._delay_seconds = 0
        for gate in (self._requests, self._replies, self._accepting):
            gate.set()

    def lead_to(self, dsn: str) -> None:
        """Forward new connections to another server. Open connections stay with the old one until `cut`."""
        self._upstream = dsn

    def cut(self) -> None:
        """Reset every open connection. What was held is lost."""
        for writer in list(self._writers):
            writer.transport.abort()
        self._writers.clear()

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        pipe = asyncio.create_task(self._join(reader, writer))
        self._pipes.add(pipe)
        pipe.add_done_callback(self._pipes.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._accepting.wait()
            server_reader, server_writer = await self._connect()
        except OSError:
            # No server listens: reset the client's connection as well.
            writer.transport.abort()
            return
        except BaseException:
            writer.transport.abort()
            raise
        pair = {writer, server_writer}
        backends: set[int] = set()
        self._writers |= pair
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pipe(reader, server_writer, self._requests))
                group.create_task(self._pipe(server_reader, writer, self._replies, backends))
        finally:
            self._writers -= pair
            self.backends -= backends
            for end in pair:
                end.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        parts = urlsplit(self._upstream)
        query = dict(parse_qsl(parts.query))
        host, port = parts.hostname or query.get("host", "localhost"), parts.port or int(query.get("port", "5432"))
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    async def _pipe(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        gate: asyncio.Event,
        backends: set[int] | None = None,
    ) -> None:
        """Forward one direction. If its connection ends or is cut, the other direction ends with it."""
        generation = self._generation
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                if backends is not None and not backends:
                    self._note_backend(data, backends)
                if generation != self._generation:
                    continue
                self.holding += 1
                try:
                    await gate.wait()
                finally:
                    self.holding -= 1
                if self._delay_seconds:
                    await asyncio.sleep(self._delay_seconds)
                if writer.transport.is_closing():
                    break
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    def _note_backend(self, data: bytes, backends: set[int]) -> None:
        at = data.find(_BACKEND_KEY)
        if 0 <= at <= len(data) - 9:
            backends.add(int.from_bytes(data[at + 5 : at + 9], "big"))
            self.backends |= backends


def _open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate
