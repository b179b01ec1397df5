"""The README's code, without a pod: that what a person copies from it works."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.readme import ROOT, code_of

from baton.generators.registry import load_generators
from baton.settings import Settings


@pytest.mark.parametrize(
    ("heading", "page"),
    [("In your own application", "docs/deploy.md"), ("Your application's sessions", "docs/python.md")],
)
def test_the_application_can_be_imported(heading: str, page: str) -> None:
    names: dict[str, Any] = {}
    exec(code_of(heading, page), names)
    assert names["app"].routes[0].app is names["baton_app"]


@pytest.mark.parametrize(
    ("heading", "page"),
    [
        ("Your own generator", "README.md"),
        ("Generators", "docs/generators.md"),
        ("A generator that continues", "docs/worker-loss.md"),
    ],
)
def test_the_generator_can_be_loaded(heading: str, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_agent", raising=False)
    (tmp_path / "my_agent.py").write_text(code_of(heading, page))
    assert "agent" in load_generators(Settings.load(generators={"agent": "my_agent:generate"}))
    # Other tests load modules of this name.
    del sys.modules["my_agent"]


def test_links_lead_to_pages_and_headings() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "clients/js/README.md"]
    anchors = {page: {anchor(heading) for heading in headings(page)} for page in pages}
    broken = []
    for page in pages:
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            if target.startswith(("http:", "https:", "mailto:")):
                continue
            path, _, fragment = target.partition("#")
            found = (page.parent / path).resolve() if path else page
            if not found.exists() or (fragment and fragment not in anchors.get(found, ())):
                broken.append(f"{page.name}: {target}")
    assert broken == []


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
