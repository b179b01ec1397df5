"""The pages for people who read or change the code: what they name is there, and the site has all of them."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tools.docs_site import ROOT_PAGES, find_faults, with_lists_apart, with_pages_listed
from tools.release_notes import notes

import baton

PROJECT = Path(__file__).parents[2]
DOCS = PROJECT / "docs"
NAMING = (PROJECT / "CONTRIBUTING.md", DOCS / "architecture.md")
SETTINGS = tomllib.loads(with_pages_listed((PROJECT / "zensical.toml").read_text()))["project"]


def pages_of(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for item in nav.values() if isinstance(nav, dict) else nav:
            yield from pages_of(item)


def test_the_site_has_every_page_once() -> None:
    pages = [*ROOT_PAGES, *(str(page.relative_to(PROJECT)) for page in DOCS.rglob("*.md"))]
    assert sorted(pages_of(SETTINGS["nav"])) == sorted(pages), "Add the page to `nav` in zensical.toml."


@pytest.mark.parametrize("page", NAMING, ids=lambda page: page.name)
def test_named_files_and_tests_exist(page: Path) -> None:
    for span in re.findall(r"`([^`\n]+)`", page.read_text()):
        path, _, test = span.partition("::")
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", path) or not re.search(r"/|\.(py|md|toml|json|yaml)$", path):
            continue
        places = [PROJECT / path, PROJECT / "app/baton" / path]
        if re.fullmatch(r"test_\w+\.py", path):
            places = list((PROJECT / "tests").rglob(path))
        elif "/" not in path:
            places += (PROJECT / "app/baton").rglob(path)
        found = [place for place in places if place.exists()]
        assert found, f"{page.name} names {span}, which is not there."
        if test:
            assert any(f"def {test}(" in place.read_text() for place in found), f"{page.name} names {span}."


@pytest.mark.parametrize("page", NAMING, ids=lambda page: page.name)
def test_named_tests_exist(page: Path) -> None:
    sources = "".join(file.read_text() for file in (PROJECT / "tests").rglob("*.py"))
    for name in re.findall(r"`(test_\w+)`", page.read_text()):
        assert f"def {name}(" in sources, f"{page.name} names {name}."


def test_test_names_are_short() -> None:
    for file in (PROJECT / "tests").rglob("*.py"):
        names = re.findall(r"^\s*(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
        assert [name for name in names if len(name) >= 80] == [], f"{file.name}: at most 79 characters."


def test_named_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    for page in (*NAMING, PROJECT / ".github/workflows/test.yml", PROJECT / ".pre-commit-config.yaml"):
        named = re.findall(r"(?:^|`|run: |\n)make ([a-z-]+)", page.read_text())
        assert set(named) <= targets, page.name


def test_a_list_after_a_paragraph_is_a_list_on_the_site() -> None:
    text = "Paragraph:\n- one\n  more\n- two\n\n# Heading\n- three\n```\ncode\n- four\n```\n"
    assert with_lists_apart(text) == text.replace("Paragraph:\n", "Paragraph:\n\n")


def test_the_reference_has_each_public_name() -> None:
    described = set(re.findall(r"^::: baton(?:\.\w+)*\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE))
    assert set(getattr(baton, "__all__", ())) - {"__version__"} <= described


def test_vendored_files_match_the_published_ones() -> None:
    for name, package in tomllib.loads((DOCS / "assets/vendored.toml").read_text()).items():
        for file, stated in package["files"].items():
            assert hashlib.sha256((DOCS / "assets" / file).read_bytes()).hexdigest() == stated["sha256"], file
        assert package["version"] in (DOCS / f"assets/{name}.js").read_text()


def test_a_new_revision_imports_existing_names() -> None:
    template = (PROJECT / "migrations/script.py.mako").read_text()
    for module, name in re.findall(r"^from (\S+) import (\w+)$", template, re.MULTILINE):
        if module != "__future__":
            assert importlib.util.find_spec(f"{module}.{name}") or hasattr(importlib.import_module(module), name)


def test_the_package_and_the_project_have_one_version() -> None:
    assert tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"] == baton.__version__


def test_release_notes_are_the_releases_part_of_the_changelog() -> None:
    changelog = (
        "# Changelog\n\n## Unreleased\n\n## 1.1.0 (2026-12-31)\n\n### Added\n- A thing.\n\n## 1.0.0 (2026-12-01)"
    )
    assert notes(changelog, "1.1.0") == "### Added\n- A thing.\n"
    for version in ("1.0.0", "1.1", "2.0.0"):
        with pytest.raises(ValueError, match=r"CHANGELOG\.md"):
            notes(changelog, version)


def test_faults_of_a_built_site_are_found(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/index.html").write_text('<h1 id="there">Other</h1>')
    (tmp_path / "index.html").write_text(
        '<a href="other/#there">good</a> <a href="https://example.com/">good</a> <a href="#">good</a>'
        '<a href="other/#gone">bad</a> <a href="none.txt">bad</a> <img src="none.png">'
        '<script src="https://example.com/x.js"></script> <link rel="stylesheet" href="//example.com/x.css">'
    )
    assert sorted(find_faults(tmp_path)) == [
        "index.html links to none.png: no such file",
        "index.html links to none.txt: no such file",
        "index.html links to other/#gone: no such heading",
        "index.html loads //example.com/x.css",
        "index.html loads https://example.com/x.js",
    ]
