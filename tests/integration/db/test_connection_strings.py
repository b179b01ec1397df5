"""Connection strings against a real server: where they lead, with which password and which TLS."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.certificates import make_certificate
from tests.support.roles import PASSWORD, granted

from baton.db.postgres import connect, pool
from baton.dsn.connection_strings import Dsn
from baton.errors import DatabaseUnreachable
from baton.settings import Settings


def arguments(text: str) -> dict[str, Any]:
    return Dsn.parse(text).arguments()


HARMLESS = (
    "application_name=x&fallback_application_name=x&connect_timeout=10&keepalives=1&keepalives_idle=30&"
    "keepalives_interval=10&keepalives_count=5&tcp_user_timeout=1000&load_balance_hosts=random&sslcompression=0&"
    "gssencmode=disable&gssdelegation=0&sslcertmode=allow&sslsni=1&replication=false&client_encoding=UTF8&"
    "channel_binding=prefer&min_protocol_version=3.0&max_protocol_version=latest&pgbouncer=true&connection_limit=1&"
    "pool_timeout=0&schema=public&sslaccept=accept_invalid_certs&supa=base-pooler.x&statement_cache_size=0&"
    "workaround=supabase-pooler.vercel&uselibpqcompat=true&prepared_statement_cache_size=0&options=-c%20jit%3Doff&"
    "target_session_attrs=primary"
)


async def test_harmless_parameters_are_ignored(dsn: str) -> None:
    with_all = f"{dsn}{'&' if '?' in dsn else '?'}{HARMLESS}"
    connection = await connect(Settings.load(database_url=with_all).dsn, name="a test")
    assert (
        await connection.fetchval("SELECT current_setting('jit') || current_setting('application_name')") == "offa test"
    )
    await connection.close()
    async with pool(with_all, size=1, timeout_seconds=10) as opened:
        assert await opened.fetchval("SELECT 1") == 1


async def test_pairs_lead_to_the_same_database(dsn: str) -> None:
    known = Dsn.parse(dsn).parameters
    text = " ".join(f"{name}='{value}'" for name, value in known.items()) + "\n"
    settings = Settings.load(database_url=text)
    assert Dsn.parse(settings.dsn) == Dsn.parse(dsn)
    connection = await connect(settings.dsn)
    assert await connection.fetchval("SELECT current_database()") == known["dbname"]
    await connection.close()


@pytest.mark.parametrize("folder", ["plain", "a:b"])
async def test_a_passfile_is_read_at_each_connect(tmp_path: Path, dsn: str, folder: str) -> None:
    async with granted(dsn) as roles:
        address = Dsn.parse(dsn)
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "pass"
        file.touch(0o600)
        user = roles.names.serve
        hosts = address.parameters.get("host", "localhost")
        text = f"host='{hosts}' dbname={address.database} user={user} passfile='{file}'"
        text += f" port={address.parameters['port']}" if "port" in address.parameters else ""
        call: Any = arguments(text)["password"]
        assert call() is None
        file.write_text(f"# mine\nelsewhere:*:*:*:no\n*:*:*:{user}:{PASSWORD}\\:\\\\\n")
        assert call() == f"{PASSWORD}:\\"
        file.chmod(0o644)
        assert call() is None


class TlsFront:
    """A server that accepts TLS in front of a Postgres without TLS."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self.certificate = folder / "server.crt"
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        make_certificate(self.certificate, folder / "server.key")
        self._context.load_cert_chain(self.certificate, folder / "server.key")
        self._known = Dsn.parse(dsn)
        self.encrypted = 0

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Yield the start of a DSN of the same database, by the name `localhost`."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        user = self._known.parameters.get("user", "postgres")
        try:
            yield f"postgresql://{user}@localhost:{port}/{self._known.database}"
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (await reader.readexactly(8))[4:] != b"\x04\xd2\x16\x2f":
            writer.close()
            return
        writer.write(b"S")
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await writer.start_tls(self._context)
            self.encrypted += 1
            given = self._known.parameters
            host, port = given["host"], int(given.get("port", 5432))
            opening = (
                asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
                if host.startswith("/")
                else asyncio.open_connection(host, port)
            )
            upstream, to_server = await opening
            await asyncio.gather(_pump(reader, to_server), _pump(upstream, writer))


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await source.read(65_536):
            target.write(chunk)
            await target.drain()
    target.close()


async def test_tls_is_as_strict_as_required(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    front = TlsFront(dsn, tmp_path)
    async with front.serving() as address:
        for query in (
            "channel_binding=require",
            "sslmode=require&channel_binding=require",
            f"sslmode=verify-full&sslrootcert={front.certificate}",
        ):
            connection = await connect(f"{address}?{query}")
            assert await connection.fetchval("SELECT 1") == 1
            await connection.close()
        assert front.encrypted == 3
        system = f"{address}?sslrootcert=system"
        with pytest.raises(DatabaseUnreachable, match="CERTIFICATE_VERIFY_FAILED"):
            await connect(system)
        monkeypatch.setenv("SSL_CERT_FILE", str(front.certificate))
        connection = await connect(system)
        await connection.close()
