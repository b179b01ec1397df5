"""The pages for people who read or change the code: what they name is there, and the site has all of them."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tools.docs_site import ROOT_PAGES, find_faults, with_lists_apart, with_pages_listed
from tools.release_notes import notes

import baton
from baton import testing
from baton.api import errors_page

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


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_tests_named_on_any_page_exist(page: Path) -> None:
    files: list[Path] = []
    for path, test in re.findall(r"`([\w/.]+\.py|…)(?:::(\w+))?`", page.read_text()):
        if path != "…":  # the file that was named last
            files = [file for file in (PROJECT / "tests").rglob("*.py") if f"/{file}".endswith(f"/{path}")]
        if test:
            assert any(f"def {test}(" in file.read_text() for file in files), f"{page.name} names {path}::{test}."


@pytest.mark.slow
@pytest.mark.parametrize("page", ["failover", "observability", "database"])
def test_quoted_log_lines_are_in_the_code(page: str) -> None:
    text = re.sub(r"^```json$.*?^```$", "", (DOCS / f"{page}.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = re.findall(r'"((?:The|A|An|Stream) [^"`]+[.…])"', text) + re.findall(
        r"^\| `([A-Z][^`]+[.…])` \|", text, re.MULTILINE
    )
    lines += re.findall(r"^(?:ERROR|DETAIL|HINT):  (.+?)(?: \.\.\.)?$", text, re.MULTILINE)
    assert lines
    for line in lines:
        for part in re.split(r"…|\d+|\bapp\b|reports.*", " ".join(line.split())):
            assert part.strip(" .:") in in_the_code(), line


@functools.cache
def in_the_code() -> str:
    """Return all strings of the package, each on one line."""
    trees = [ast.parse(file.read_text()) for file in (PROJECT / "app").rglob("*.py")]
    strings = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    text = "\n".join(" ".join(string.split()) for string in strings if isinstance(string, str))
    return text.replace("' '", "")  # two strings of SQL in a row are one


def test_the_page_about_the_database_lists_every_revision() -> None:
    listed = re.findall(r"^\| (\d{4}) \|", (DOCS / "database.md").read_text(), re.MULTILINE)
    assert listed == sorted(file.stem.split("_")[3] for file in (PROJECT / "migrations/versions").glob("*.py"))


def test_both_pages_of_errors_have_the_same_headings() -> None:
    headings = re.findall(r"^## (.+)$", (DOCS / "errors.md").read_text(), re.MULTILINE)
    assert headings == re.findall("<h2>(.+)</h2>", errors_page.page())


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
    assert {*baton.__all__, *testing.__all__} - {"__version__"} <= described


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


def test_the_packages_and_the_project_have_one_version() -> None:
    assert tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"] == baton.__version__
    for file in ("package.json", "package-lock.json"):
        assert json.loads((PROJECT / "clients/js" / file).read_text())["version"] == baton.__version__, file


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
