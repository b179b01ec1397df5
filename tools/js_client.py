"""Builds the npm package in clients/js, and what is committed of it: `python -m tools.js_client`.

It writes `clients/js/src/openapi.ts`, the types of the OpenAPI document's native routes, and the browser build, one
module that pods serve and the wheel holds. `--pack` also builds `npm/baton-stream-<version>.tgz`, which a release
publishes.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bench.packages import node, npm, npm_command

from baton import api
from baton.api.openapi_document import document

PROJECT: Final = Path(__file__).parent.parent
PACKAGE: Final = PROJECT / "clients" / "js"
TYPES: Final = Path("src") / "openapi.ts"
BROWSER: Final = Path("baton-stream.js")
PAGES: Final = PROJECT / "app/baton/api/pages"
_SOURCES: Final = ("package.json", "tsconfig.json", "build.mjs", "sizes.mjs", "LICENSE", "README.md", "src", "test")
_ROUTES: Final = "/v1/streams"
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


def main(arguments: list[str]) -> None:
    """Build, and write what is committed into this checkout."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        build(folder)
        shutil.copy(folder / TYPES, PACKAGE / TYPES)
        shutil.copy(folder / "dist" / BROWSER, PAGES / BROWSER)
        if "--pack" in arguments:
            pack(folder, PROJECT / "npm")


if __name__ == "__main__":
    main(sys.argv[1:])
