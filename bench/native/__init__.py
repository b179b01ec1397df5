"""The programs in C: compiled at their first use into `.cache/bench`, where they stay until their source changes."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from bench.missing import Missing

CACHE = Path(__file__).parents[2] / ".cache" / "bench"


def compiled(name: str) -> Path:
    """The program made of `name`.c.

    Raises:
        Missing: there is no compiler here, or no epoll.
    """
    source = Path(__file__).with_name(f"{name}.c")
    program = CACHE / f"{name}-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
    if not program.exists():
        _compile(source, program)
    return program


def _compile(source: Path, program: Path) -> None:
    if sys.platform != "linux":
        raise Missing("The load client needs Linux (epoll). Run it in a container there.")
    if shutil.which("cc") is None:
        raise Missing(
            "There is no C compiler here for the load client. On Debian and Ubuntu: apt-get install gcc libc6-dev"
        )
    program.parent.mkdir(parents=True, exist_ok=True)
    # Two runs may start at once: each puts a complete program there.
    made = program.with_suffix(f".{id(program)}")
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", made, source], check=True)
    made.replace(program)
