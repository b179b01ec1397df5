"""The scripts in `durable_streams`, which run the protocol's suite and its TypeScript client by node."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from bench.packages import npm
from tests.clients.node import HERE, Node

SCRIPTS = HERE / "durable_streams"
# Forks are answered with 501. The suite itself leaves subscriptions out.
NO_FORKS = "^(?!.*Fork - )"
SUITE_SECONDS = 150


@dataclass(frozen=True, slots=True)
class Conformance:
    """What the suite found."""

    passed: int
    failures: tuple[str, ...]  # names, each with the first line of its error


def scripts_in(folder: Path) -> Node:
    """Put the scripts and their packages into a folder. The packages are installed once for each lock file."""
    (folder / "node_modules").symlink_to(npm(SCRIPTS, "durable-streams") / "node_modules")
    for script in SCRIPTS.glob("*.mjs"):
        shutil.copy(script, folder)
    return Node(folder)


async def conformance(node: Node, url: str) -> Conformance:
    """Run the suite against a server."""
    (node.folder / "url").write_text(url)
    report = node.folder / "report.json"
    arguments = ("run", "--root", str(node.folder), "-t", NO_FORKS, "--reporter=json", f"--outputFile={report}")
    async with node.running("node_modules/vitest/vitest.mjs", *arguments) as script:
        await script.process.communicate()
    tests = [test for file in json.loads(report.read_text())["testResults"] for test in file["assertionResults"]]
    failures = (
        f"{test['fullName']}: {(test['failureMessages'] or ['?'])[0].splitlines()[0]}"
        for test in tests
        if test["status"] == "failed"
    )
    return Conformance(sum(test["status"] == "passed" for test in tests), tuple(failures))
