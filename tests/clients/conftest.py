"""Real clients from npm, run by node against real pods."""

from __future__ import annotations

import shutil

import pytest
from tests.clients.node import HERE, Node, installed
from tests.faults.conftest import breakable, breakable_cluster  # noqa: F401


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """The scripts in a folder with their packages, which are installed once for each state of the lock file."""
    folder = tmp_path_factory.mktemp("clients")
    (folder / "node_modules").symlink_to(installed())
    for script in HERE.glob("*.mjs"):
        shutil.copy(script, folder)
    return Node(folder)
