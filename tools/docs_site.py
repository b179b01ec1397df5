"""Builds the documentation site into `site/`, strictly: `python -m tools.docs_site`.

The pages are the Markdown files of the repository. They are copied with the layout of the repository, so a link that
works on GitHub works on the site. A link to a file that is not a page leads to the repository.

Zensical fails on a link to a missing page or heading, and on a missing name of the Python API. It does not check files,
images and raw HTML, so this module checks the built pages. It also fails if a page loads anything from another server.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

PROJECT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((PROJECT / "zensical.toml").read_text())["project"]
PAGES = PROJECT / SETTINGS["docs_dir"]
SITE = PROJECT / SETTINGS["site_dir"]
REPOSITORY = SETTINGS["extra"]["social"][0]["link"]
ROOT_PAGES = ("README.md", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md")

_EXPANDED = PROJECT / ".zensical.toml"  # Zensical takes no patterns
_PATTERN = re.compile(r'"(docs/[\w/]+/\*\.md)",')
_LINK = re.compile(r"(?<=\]\()([^)\s:#]+)(?=[)#])")
_ITEM = re.compile(r"([-*]|1\.) ")
_BEFORE_ITEM = re.compile(r"([-*]|\d+\.) |\s|#")
# What a browser fetches automatically, by the attribute that names it. For links: the relations that it fetches.
_FETCHED = {"script": "src", "img": "src", "source": "src", "iframe": "src", "video": "src", "audio": "src"}
_FETCHED_RELATIONS = {"stylesheet", "icon", "preload", "preconnect", "modulepreload", "manifest", "dns-prefetch"}


def main() -> None:
    """Copy, build, check; exit with the list of what is wrong."""
    copy_pages()
    zensical = Path(sys.executable).parent / "zensical"
    _EXPANDED.write_text(with_pages_listed((PROJECT / "zensical.toml").read_text()))
    try:
        command: list[str | Path] = [zensical, "build", "--strict", "--clean", "--config-file", _EXPANDED]
        if built := subprocess.run(command, cwd=PROJECT, check=False).returncode:
            sys.exit(built)
    finally:
        _EXPANDED.unlink()
    if faults := list(find_faults(SITE)):
        sys.exit("\n".join(["The site has these faults:", *faults]))


def copy_pages() -> None:
    """Copy all pages and their files to where Zensical reads them."""
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir(parents=True)
    shutil.copytree(PROJECT / "docs", PAGES / "docs", ignore=shutil.ignore_patterns("theme"))
    for name in ROOT_PAGES:
        shutil.copy(PROJECT / name, PAGES)
    for page in PAGES.rglob("*.md"):
        page.write_text(with_lists_apart(_with_links_to_the_repository(page)))


def with_pages_listed(settings: str) -> str:
    """Return the settings with each pattern of the navigation replaced by the pages that match, READMEs aside."""

    def listed(pattern: re.Match[str]) -> str:
        pages = sorted(page for page in PROJECT.glob(pattern[1]) if page.name != "README.md")
        return "".join(f'"{page.relative_to(PROJECT)}", ' for page in pages)

    return _PATTERN.sub(listed, settings)


def with_lists_apart(text: str) -> str:
    """Put an empty line before each list that follows a paragraph: GitHub needs none, and Python-Markdown does."""
    lines: list[str] = []
    in_code = False
    for line in text.splitlines():
        before = lines[-1] if lines else ""
        if not in_code and _ITEM.match(line) and before and not _BEFORE_ITEM.match(before):
            lines.append("")
        in_code ^= line.startswith("```")
        lines.append(line)
    return "\n".join([*lines, ""])


def find_faults(site: Path) -> Iterator[str]:
    """Yield a sentence for each link that leads nowhere, and for each thing that is loaded from another server."""
    pages = {path: _Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    for path, page in pages.items():
        place = path.relative_to(site)
        for address in page.fetched:
            if urlsplit(address).netloc:
                yield f"{place} loads {address}"
        for address in {*page.links, *page.fetched}:
            scheme, server, target, _, fragment = urlsplit(address)
            if scheme or server:
                continue
            found = (path.parent / unquote(target)).resolve() if target else path
            found = found / "index.html" if found.is_dir() else found
            if not found.is_file():
                yield f"{place} links to {address}: no such file"
            elif fragment and found in pages and unquote(fragment) not in pages[found].ids:
                yield f"{place} links to {address}: no such heading"


def _with_links_to_the_repository(page: Path) -> str:
    """Return a page's text, in which links to files that are not on the site lead to the repository."""
    folder = (PROJECT / page.relative_to(PAGES)).parent

    def leading_there(link: re.Match[str]) -> str:
        target = (folder / link[1]).resolve()
        if (page.parent / link[1]).exists() or not target.exists() or not target.is_relative_to(PROJECT):
            return link[1]
        return f"{REPOSITORY}/blob/main/{target.relative_to(PROJECT)}"

    return _LINK.sub(leading_there, page.read_text())


class _Page(HTMLParser):
    """What a built page links to, what it fetches, and the ids that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.fetched: set[str] = set()
        self.ids: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what one element links to or fetches."""
        attributes = {name: value for name, value in attrs if value is not None}
        self.ids |= {attributes[name] for name in ("id", "name") if name in attributes}
        if tag == "a" and "href" in attributes:
            self.links.add(attributes["href"])
        elif tag == "link" and _FETCHED_RELATIONS & set(attributes.get("rel", "").split()):
            self.fetched.add(attributes["href"])
        elif (attribute := _FETCHED.get(tag)) in attributes:
            self.fetched.add(attributes[attribute])


if __name__ == "__main__":
    main()
