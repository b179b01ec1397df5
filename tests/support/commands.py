"""The command line in this process: one of its own takes a second, and is for what only a process can show."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import signal
import sys
from collections.abc import Iterator, Mapping

import pytest

from baton import cli

CHATTY = ("alembic", "httpx2", "baton.worker.run")


def told(*arguments: str, env: Mapping[str, str]) -> tuple[int, str, str]:
    """Run `baton` to its end, where the test is, with these variables; return its exit code and what it wrote.

    No event loop may run here: the command has its own.
    """
    out, err = written(), written()
    with _as_it_was(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["baton", *arguments])
        for name, value in env.items():
            patch.setenv(name, value)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = _exit_code()
    return code, read(out), read(err)


def written() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)


def read(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def _exit_code() -> int:
    try:
        cli.main()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    return 0


@contextlib.contextmanager
def _as_it_was() -> Iterator[None]:
    """Put back what a command changes in a process that is its own: signals, logging, modules, the collector."""
    root = logging.getLogger()
    handlers, levels = root.handlers[:], {name: logging.getLogger(name).level for name in ("", *CHATTY)}
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    path, modules, thresholds = sys.path[:], set(sys.modules), gc.get_threshold()
    # Configuring the log closes the handlers that there are.
    root.handlers = []
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
        root.handlers = handlers
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for number, handler in signals.items():
            signal.signal(number, handler)
        sys.path[:] = path
        for name in sys.modules.keys() - modules:
            if not name.startswith("baton."):
                _forget(name)


def _forget(name: str) -> None:
    """Leave no module of the test's own folder, whose name another test's may have."""
    module = sys.modules[name]
    if "site-packages" not in (getattr(module, "__file__", None) or "site-packages"):
        del sys.modules[name]
