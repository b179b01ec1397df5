"""The public API: what it names is there, costs nothing until it is used, and is all that docs and examples import."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import baton

PROJECT = Path(__file__).parents[2]
PUBLIC_MODULES = ("baton", "baton.client", "baton.testing")
# Their frameworks need not be installed.
ADAPTERS = {f"baton.adapters.{path.stem}" for path in (PROJECT / "app/baton/adapters").glob("[a-z]*.py")}
PAGES = [PROJECT / "README.md", PROJECT / "SECURITY.md", *sorted((PROJECT / "docs").glob("*.md"))]
DEPLOY = [path for path in (PROJECT / "deploy").rglob("*") if path.is_file()]


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_every_public_name_resolves(module: str) -> None:
    public = importlib.import_module(module)
    assert public.__all__
    for name in public.__all__:
        assert getattr(public, name) is not None
    assert set(public.__all__) <= set(dir(public))


def test_types_and_lazy_imports_name_the_same_modules() -> None:
    tree = ast.parse(Path(baton.__file__).read_text())
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in checked.body if isinstance(node, ast.ImportFrom)]
    assert {name.name: node.module for node in imports for name in node.names} == baton._MODULES
    assert set(baton.__all__) == {*baton._MODULES, "__version__"}


def test_the_version_is_that_of_the_distribution() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert (project["name"], project["version"]) == ("baton-stream", baton.__version__)


def test_what_baton_imports_has_no_adapter() -> None:
    program = "import sys, baton.app, baton.worker.worker, baton.cli; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"baton.adapters", "agents", "pydantic_ai"} & set(found.stdout.split())


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'baton' has no attribute 'nosuch'"):
        _ = baton.nosuch


def test_the_docs_and_examples_import_public_names_only() -> None:
    found = [(path, *item) for path in [*PAGES, *DEPLOY] for item in imported(path.read_text(errors="replace"))]
    assert len(found) >= 2
    for path, module, name in found:
        if module in ADAPTERS and name in {"generator", "Middleware"}:
            continue
        assert module in PUBLIC_MODULES, f"{path}: {module}"
        assert name in importlib.import_module(module).__all__, f"{path}: {module}.{name}"


def test_the_docs_name_public_paths_only() -> None:
    modules = {item.stem for item in Path(baton.__file__).parent.iterdir()} - {"client", "adapters", "testing"}
    for path in PAGES:
        for first, rest in re.findall(r"`baton\.(\w+)((?:\.\w+)*)", path.read_text()):
            if (path.name, first, rest) in NOT_PYTHON:
                continue
            assert first in baton.__all__ or first not in modules or not rest, f"{path}: baton.{first}{rest}"


# Columns of tables in the schema `baton`.
NOT_PYTHON = {("console.md", "worker", ".tokens")}


def imported(text: str) -> Iterator[tuple[str, str]]:
    """Each name that a text imports from Baton, with its module."""
    for module, names in re.findall(r"^\s*from (baton[\w.]*) import ([\w, ]+)", text, re.MULTILINE):
        yield from ((module, name.partition(" as ")[0].strip()) for name in names.split(","))
    yield from ((module, "") for module in re.findall(r"^\s*import (baton\.[\w.]+)", text, re.MULTILINE))
