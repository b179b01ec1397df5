"""The example in the docs."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[3] / "docs/testing.md").read_text()


def test_the_example_in_the_docs_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = re.findall(r"^```python\n# (\w+)\.py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in files] == ["my_agent", "test_my_agent"]
    monkeypatch.syspath_prepend(tmp_path)
    for name, content in files:
        (tmp_path / f"{name}.py").write_text(content)
        sys.modules.pop(name, None)
    module = importlib.import_module("test_my_agent")
    tests = [test for name, test in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 4
    for test in tests:
        test()
    for name, _ in files:
        sys.modules.pop(name)
