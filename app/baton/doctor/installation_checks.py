"""Checks that no other distribution has overwritten files of Baton."""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib.metadata import PackageNotFoundError, distribution
from typing import Final

from .finding import Case, Finding, ok, warning

# Another project on the package index. Its package has the same name, so each of the two overwrites files of the other.
OTHER: Final = "baton"
SHARED_FILE: Final = "baton/__init__.py"


async def other_distribution(_case: Case) -> AsyncIterator[Finding]:
    """Look for the distribution `baton`."""
    yield distributions()


def distributions() -> Finding:
    """Return what the installed distributions are like: it does not depend on a database."""
    try:
        found = distribution(OTHER)
    except PackageNotFoundError:
        found = None
    if found is None or SHARED_FILE not in map(str, found.files or ()):
        return ok("distribution", "No other distribution has files in the package `baton`.")
    return warning(
        "distribution",
        f"The distribution `baton` {found.version}, another project, shares files with `baton-stream`.",
        "Run: pip uninstall --yes baton baton-stream && pip install baton-stream",
    )
