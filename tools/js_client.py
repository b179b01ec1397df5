"""Builds the npm package in clients/js, and what is committed of it: `python -m tools.js_client`.

It writes `clients/js/src/openapi.ts`, the types of the OpenAPI document's native routes, and the browser build, one
module that pods serve and the wheel holds, and states its hash in `docs/javascript.md`. `--pack` also builds
`npm/baton-stream-<version>.tgz`, which a release publishes.

`--release` notes that the build is released: from then on it cannot change, and stays until the release after the next.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bench.packages import node, npm, npm_command

from baton import __version__, api
from baton.api.browser_builds import FOLDER, NEWEST
from baton.api.openapi_document import document

PROJECT: Final = Path(__file__).parent.parent
PACKAGE: Final = PROJECT / "clients" / "js"
TYPES: Final = Path("src") / "openapi.ts"
BROWSER: Final = Path("baton-stream.js")
BUILDS: Final = PROJECT / "app/baton/api" / FOLDER
RELEASED: Final = BUILDS / "released.toml"
PAGE: Final = PROJECT / "docs" / "javascript.md"
_SOURCES: Final = ("package.json", "tsconfig.json", "build.mjs", "sizes.mjs", "LICENSE", "README.md", "src", "test")
_ROUTES: Final = "/v1/streams"
_NAMED: Final = re.compile(r"/client/\d[^\s\"/]*\.js")
_HASH: Final = re.compile(r"sha384-[A-Za-z0-9+/=]{64}")
_HEADING: Final = """\
# The browser builds of released versions, oldest first, and their hashes. `make js-release` adds a line.
"""
_REF: Final = re.compile(r'"#/components/(\w+)/([^"]+)"')


def native_routes() -> dict[str, Any]:
    """Return the OpenAPI document without other dialects, the console, and the schemas that only they use."""
    described = document(api.ROUTES)
    paths = {path: item for path, item in described["paths"].items() if path.startswith(_ROUTES)}
    components: dict[str, dict[str, Any]] = {}
    for kind, name in _used(paths, described["components"]):
        components.setdefault(kind, {})[name] = described["components"][kind][name]
    ordered = {kind: dict(sorted(found.items())) for kind, found in sorted(components.items())}
    return {**described, "paths": paths, "components": ordered}


def _used(value: Any, components: dict[str, Any]) -> Iterator[tuple[str, str]]:
    waiting, seen = [value], set[tuple[str, str]]()
    while waiting:
        for reference in _REF.findall(json.dumps(waiting.pop())):
            if reference not in seen:
                seen.add(reference)
                waiting.append(components[reference[0]][reference[1]])
                yield reference


def build(folder: Path) -> None:
    """Build the package in this folder, from copies of its sources and newly generated types."""
    for name in _SOURCES:
        source = PACKAGE / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copy(source, folder)
    (folder / "node_modules").symlink_to(npm(PACKAGE, "js-client") / "node_modules")
    (folder / "openapi.json").write_text(json.dumps(native_routes()))
    run(folder, "openapi-typescript", "openapi.json", "--output", str(TYPES))
    subprocess.run([node(), "build.mjs"], cwd=folder, check=True)


def run(folder: Path, tool: str, *arguments: str) -> None:
    """Run a tool of the package's development dependencies.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    subprocess.run([node(), folder / "node_modules/.bin" / tool, *arguments], cwd=folder, check=True, stdout=sys.stderr)


def pack(folder: Path, into: Path) -> None:
    """Make the file that a release publishes from a package that is built."""
    into.mkdir(exist_ok=True)
    subprocess.run([*npm_command(), "pack", "--ignore-scripts", "--pack-destination", into], cwd=folder, check=True)


def integrity(content: bytes) -> str:
    """Return the hash of a file as browsers check it."""
    return f"sha384-{base64.b64encode(hashlib.sha384(content).digest()).decode()}"


def publish(build: bytes, folder: Path, version: str) -> None:
    """Put a browser build beside that of the release before, in a folder of builds, and remove all others.

    Raises:
        ValueError: this version is released, with another build.
    """
    released = tomllib.loads((folder / RELEASED.name).read_text())
    if released.get(version, integrity(build)) != integrity(build):
        raise ValueError(f"The build of {version} is released and cannot change. Set the next version first.")
    before = [name for name in released if name != version][-1:]
    for file in folder.glob("*.js"):
        if file.stem not in before:
            file.unlink()
    (folder / f"{version}.js").write_bytes(build)


def release(folder: Path, version: str) -> None:
    """Note the hash of a version's build, which cannot change from then on."""
    released = tomllib.loads((folder / RELEASED.name).read_text())
    released[version] = integrity((folder / f"{version}.js").read_bytes())
    lines = [f'"{name}" = "{stated}"\n' for name, stated in released.items()]
    (folder / RELEASED.name).write_text(_HEADING + "".join(lines))


def state_hash(page: str) -> str:
    """Return the text of the documentation with the address and the hash of the newest build."""
    page = _NAMED.sub(f"/client/{NEWEST}", page)
    return _HASH.sub(lambda _: integrity((BUILDS / NEWEST).read_bytes()), page)


def main(arguments: list[str]) -> None:
    """Build, and write what is committed into this checkout."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        build(folder)
        shutil.copy(folder / TYPES, PACKAGE / TYPES)
        publish((folder / "dist" / BROWSER).read_bytes(), BUILDS, __version__)
        PAGE.write_text(state_hash(PAGE.read_text()))
        if "--release" in arguments:
            release(BUILDS, __version__)
        if "--pack" in arguments:
            pack(folder, PROJECT / "npm")


if __name__ == "__main__":
    main(sys.argv[1:])
