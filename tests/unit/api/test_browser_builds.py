"""The browser builds that pods serve: those of releases never change, and the documentation states their hash."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from tools.js_client import BUILDS, PAGE, RELEASED, integrity, publish, release, state_hash

from baton import __version__
from baton.api.browser_builds import NEWEST, names


def test_released_builds_are_as_released_and_the_newest_is_there() -> None:
    released = tomllib.loads(RELEASED.read_text())
    before = [f"{version}.js" for version in released if version != __version__][-1:]
    assert names() == {*before, NEWEST}
    for name in names():
        hashed = integrity((BUILDS / name).read_bytes())
        assert released.get(name.removesuffix(".js"), hashed) == hashed, "Set the next version, and run: make js"


def test_the_documentation_states_the_address_and_the_hash() -> None:
    page = PAGE.read_text()
    assert f"/client/{NEWEST}" in page
    assert integrity((BUILDS / NEWEST).read_bytes()) in page
    assert state_hash(page) == page, "Run: make js"


def test_a_release_keeps_the_build_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "released.toml").write_text("")
    publish(b"1 draft", tmp_path, "1.0.0")
    publish(b"1", tmp_path, "1.0.0")
    release(tmp_path, "1.0.0")
    publish(b"1", tmp_path, "1.0.0")
    with pytest.raises(ValueError, match="Set the next version first"):
        publish(b"1 changed", tmp_path, "1.0.0")
    publish(b"2 draft", tmp_path, "1.1.0")
    publish(b"2", tmp_path, "1.1.0")
    release(tmp_path, "1.1.0")
    publish(b"3", tmp_path, "2.0.0")
    assert {file.name: file.read_bytes() for file in tmp_path.glob("*.js")} == {"1.1.0.js": b"2", "2.0.0.js": b"3"}
    assert list(tomllib.loads((tmp_path / "released.toml").read_text())) == ["1.0.0", "1.1.0"]
