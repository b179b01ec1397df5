"""Where a test's own Postgres keeps its data. Neither outlives the run, even if it is killed."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Waits for the end of its input. Servers that are left then are stopped at once, and waited for.
_WATCH = """
cat
for file in "$1"/*/postmaster.pid; do
    if [ -f "$file" ]; then
        server=$(head -n 1 "$file")
        kill -QUIT "$server"
        while kill -0 "$server"; do sleep 0.1; done
    fi
done
rm -rf "$1"
"""


@contextlib.contextmanager
def data_folder(parent: Path | None = None) -> Iterator[Path]:
    """Make a folder, below which servers have theirs; it goes at the end, and with it whatever still runs there.

    A shell sees to that, which waits for this process: no handler runs in one that is killed, nor in pytest's workers
    when pytest is. Servers that stayed would fill the memory that they keep their data in.
    """
    folder = Path(tempfile.mkdtemp(prefix="baton-tests-", dir=parent))
    watch = subprocess.Popen(
        ["sh", "-c", _WATCH, "sh", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    try:
        yield folder
    finally:
        watch.communicate()
