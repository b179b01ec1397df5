"""The scripts of the systems in node. They run beside the packages that they import."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import orjson
from bench.packages import node, npm

HERE = Path(__file__).parent


def script(name: str) -> str:
    """The path of a script, where its packages are.

    Raises:
        Missing: node or npm is not here, or the packages cannot be installed.
    """
    return str(shutil.copy(HERE / f"{name}.mjs", npm(HERE, "bench-peers")))


def command(name: str) -> tuple[str, str]:
    """The command that runs a script, without arguments.

    Raises:
        Missing: node is not here, or the packages cannot be installed.
    """
    return str(node()), script(name)


def node_version() -> str:
    """The version of node."""
    return subprocess.run([node(), "--version"], capture_output=True, text=True, check=True).stdout.strip()


def npm_version(package: str) -> str:
    """The version of a package that is installed."""
    described = npm(HERE, "bench-peers") / "node_modules" / package / "package.json"
    version: str = orjson.loads(described.read_bytes())["version"]
    return version
