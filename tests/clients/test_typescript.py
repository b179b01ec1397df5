"""A client in TypeScript that is generated from the OpenAPI document compiles, and does what its types say."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from bench.packages import INSTALL_SECONDS, node, npm
from tests.clients.balancer import balancer
from tests.clients.node import HERE, SDKS, Node
from tests.clients.pods import ANSWER, WORDS, two_pods
from tests.support.cluster import Cluster
from tests.support.processes import finished

SOURCES = HERE / "typescript"
STRICT = ("--strict", "--target", "es2022", "--lib", "es2022,dom,dom.iterable")
MODULES = ("--module", "esnext", "--moduleResolution", "bundler")

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 90)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "node_modules").symlink_to(npm(SOURCES, "typescript") / "node_modules")
    for file in ("package.json", "use.ts"):
        shutil.copy(SOURCES / file, tmp_path)
    return tmp_path


async def test_a_generated_client_creates_follows_and_is_refused(cluster: Cluster, folder: Path) -> None:
    async with two_pods(cluster) as pods, balancer(pods.first, pods.second) as url:
        await generate(folder, url)
        async with Node(folder).running("out/use.js") as client:
            bodies = await client.says("bodies")
            refused, none = await client.says("refused"), await client.says("no token")
            listed = await client.says("listed")
            await client.says("created")
            pods.say(*WORDS[:300])
            await client.says("half")
            await pods.kill()
            pods.say(*WORDS[300:])
            pods.finish()
            whole = (await client.rest())[-1]
    assert bodies["typed"] == {"events": True, "codeIsNoText": True, "resumed": True, "run": True}
    assert (refused["status"], none["code"]) == (422, "stream_not_found")
    assert listed["found"] == [listed["created"]]
    assert (whole["text"], whole["count"], whole["status"]) == (ANSWER, len(WORDS) + 2, "completed")


async def generate(folder: Path, url: str) -> None:
    """Make the types of the pod's document, and compile the documentation's client with what uses it."""
    (code,) = re.findall(r"```ts\n(// baton\.ts\n.*?)```", SDKS.read_text(), re.DOTALL)
    (folder / "baton.ts").write_text(code.replace("http://localhost:8001", url))
    await run(folder, "openapi-typescript", f"{url}/openapi.json", "--output", "openapi.d.ts")
    await run(folder, "tsc", *STRICT, *MODULES, "--outDir", "out", "use.ts")


async def run(folder: Path, tool: str, *arguments: str) -> None:
    script = folder / "node_modules" / ".bin" / tool
    status, out, err = await finished(script, *arguments, env=os.environ, command=node(), cwd=folder)
    assert status == 0, out + err
