"""The code of others that Baton's pages use: what is in the package is what was published."""

from __future__ import annotations

import hashlib
import re
import tomllib
from importlib import resources

PAGES = resources.files("baton.api") / "pages"
BUILDS = resources.files("baton.api") / "browser"
VENDORED = tomllib.loads((PAGES / "vendored.toml").read_text())


def test_vendored_files_have_the_stated_checksums_and_version() -> None:
    for name, package in VENDORED.items():
        assert package["source"].endswith(f"/{name}-{package['version']}.tgz")
        for file, stated in package["files"].items():
            assert hashlib.sha256((PAGES / file).read_bytes()).hexdigest() == stated["sha256"], file
    marked = VENDORED["marked"]
    assert f"marked v{marked['version']} " in (PAGES / "marked.js").read_text()[:200]
    assert f"({marked['license']} License)" in (PAGES / "marked.js").read_text()[:200]
    assert "Permission is hereby granted" in (PAGES / "marked.LICENSE.md").read_text()


def test_pages_load_only_stated_third_party_code() -> None:
    own = {item.name for item in PAGES.iterdir()} - {file for one in VENDORED.values() for file in one["files"]}
    modules = {name: (PAGES / name).read_text() for name in own if name.endswith(".js")}
    modules |= {item.name: item.read_text() for item in BUILDS.iterdir() if item.name.endswith(".js")}
    for name, text in modules.items():
        assert max(map(len, text.splitlines())) < 200, name  # nothing minified
        for source in re.findall(r'from "([^"]+)"', text):
            assert source.startswith(("./", "../assets/")), (name, source)
        for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert sink not in text, (name, sink)
