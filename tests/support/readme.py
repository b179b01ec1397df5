"""The code in the README."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def code_of(heading: str, page: str = "README.md") -> str:
    """Return the first Python block below a heading of a page."""
    section = (ROOT / page).read_text().split(f"# {heading}\n")[1]
    match = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert match is not None
    return match[1]
