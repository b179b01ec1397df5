"""What a person copies from docs/clients.md works."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.cluster import Cluster
from tests.processes import environment

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "clients.md"
TEXT = "An answer that outlives its machine."


async def words(request: Any, /) -> AsyncGenerator[Any, None]:
    yield {"type": "reasoning", "delta": "hm"}
    for word in TEXT.split(" "):
        yield word if word == "An" else f" {word}"


async def point(request: Any, /) -> AsyncGenerator[Any, None]:
    for part in ('{"x": 1', ', "y": 2}'):
        yield part


def code_of(heading: str, language: str) -> list[str]:
    """The blocks of code below a heading."""
    section = DOCUMENTATION.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found, heading
    return found


async def printed_by(*command: str, env: Mapping[str, str], cwd: Path | None = None) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment(**env),
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert process.returncode == 0, (out.decode(), err.decode())
    return out.decode()


@pytest.mark.parametrize(
    "heading", ["Python: OpenAI's Responses", "Python: OpenAI's Chat Completions", "Python: httpx"]
)
async def test_a_python_client_prints_the_answer(cluster: Cluster, heading: str) -> None:
    pod = await cluster.pod()
    await cluster.worker({"replay": words})
    source = code_of(heading, "python")[0]
    assert await printed_by(sys.executable, "-c", source, env={"BATON_URL": pod.url}) == TEXT


async def test_partial_structured_output_is_shown_as_it_grows(cluster: Cluster) -> None:
    pod = await cluster.pod()
    await cluster.worker({"replay": point})
    source = code_of("Python: OpenAI's Responses", "python")[1]
    printed = await printed_by(sys.executable, "-c", source, env={"BATON_URL": pod.url})
    assert printed.splitlines() == ["{'x': 1}", "{'x': 1, 'y': 2}", "x=1 y=2"]


async def test_curl_prints_the_answer(cluster: Cluster) -> None:
    pod = await cluster.pod()
    await cluster.worker({"replay": words})
    (command,) = code_of("curl", "sh")
    assert await printed_by("sh", "-c", command, env={"BATON_URL": pod.url}) == TEXT
