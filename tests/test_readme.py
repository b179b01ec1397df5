"""The README's code: that what a person copies from it works."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.cluster import Cluster

from baton.generators.registry import load_generators
from baton.settings import Settings

README = Path(__file__).parent.parent / "README.md"


def code_of(heading: str) -> str:
    """The first Python block below a heading."""
    section = README.read_text().split(f"## {heading}\n")[1]
    match = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert match is not None
    return match[1]


async def run_script(source: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", source, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(30):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_the_python_client_prints_the_answer(cluster: Cluster) -> None:
    pod = await cluster.pod()
    await cluster.worker(load_generators(cluster.settings(replay_speed=1000)))
    printed = await run_script(code_of("A Python client").replace("http://localhost:8001", pod.url))
    (stream,) = (await cluster.client.get(f"{pod.url}/v1/streams")).json()["data"]
    answer = (await cluster.client.get(f"{pod.url}/v1/streams/{stream['id']}")).json()
    assert answer["status"] == "completed"
    assert printed == answer["text"]


def test_the_application_can_be_imported() -> None:
    names: dict[str, Any] = {}
    exec(code_of("In your own application"), names)
    assert names["app"].routes[0].app is names["baton_app"]


def test_the_generator_can_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_agent.py").write_text(code_of("Your own generator"))
    assert "agent" in load_generators(Settings.load(generators={"agent": "my_agent:generate"}))
