"""Prints a release's part of CHANGELOG.md: `python -m tools.release_notes v1.2.3`.

Fails unless the tag is the version in pyproject.toml, and the changelog has a dated section for it that is not empty.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent


def notes(changelog: str, version: str) -> str:
    """Return what the changelog says about a version, without its heading.

    Raises:
        ValueError: it has no section with a date for that version, or nothing in it.
    """
    heading = re.search(rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$", changelog, re.MULTILINE)
    if heading is None:
        raise ValueError(f"CHANGELOG.md has no heading like `## {version} (2026-12-31)`.")
    section = re.split(r"^## ", changelog[heading.end() :], maxsplit=1, flags=re.MULTILINE)[0].strip()
    if not section:
        raise ValueError(f"CHANGELOG.md says nothing about {version}.")
    return section + "\n"


def main(tag: str) -> None:
    """Write the notes of the tagged version to standard output."""
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    if tag != f"v{version}":
        sys.exit(f"The tag is {tag}, and pyproject.toml has the version {version}.")
    try:
        sys.stdout.write(notes((PROJECT / "CHANGELOG.md").read_text(), version))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1])
