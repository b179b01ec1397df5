"""The code of docs/react-native.md in Node, with stand-ins for what a phone has: it sleeps, and changes networks."""

from __future__ import annotations

import subprocess

import pytest
from bench.packages import INSTALL_SECONDS
from bench.packages import node as node_path
from tests.clients.balancer import balancer
from tests.clients.documentation import code_of
from tests.clients.node import REACT_NATIVE, Node, Script, documented
from tests.clients.pods import ANSWER, WORDS, two_pods
from tests.support.cluster import Cluster
from tools.js_client import PACKAGE

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 60)

STAND_INS = ("react-native", "expo-network", "expo/fetch")


def bundled(node: Node, url: str) -> str:
    """Bundle the app for pods at an address, with the sources of our package; return the name of the script."""
    (component,) = code_of("One answer", "jsx", REACT_NATIVE)
    for name, code in {**documented(REACT_NATIVE), "app_answer.jsx": component}.items():
        (node.folder / name).write_text(code.replace("http://localhost:8001", url))
    subprocess.run(
        [
            *(node.folder / "node_modules" / ".bin" / "esbuild", "app.mjs", "--outfile=app.out.mjs"),
            *("--bundle", "--platform=node", "--format=esm", "--packages=external", "--jsx=automatic"),
            *("--log-level=error", *(f"--alias:{name}=./app_stand_ins.mjs" for name in STAND_INS)),
            *(f"--alias:baton-stream/{entry}={PACKAGE / 'src' / entry}.ts" for entry in ("react", "ai-sdk")),
        ],
        env={"PATH": str(node_path().parent)},
        cwd=node.folder,
        check=True,
    )
    return "app.out.mjs"


async def happens(app: Script, *lines: str) -> int:
    """Let things happen to the phone; return how many requests it has sent."""
    count = 0
    for line in lines:
        app.hears(line)
        count = (await app.says(line))["requests"]
    return count


async def test_an_app_follows_through_sleep_another_network_and_a_killed_pod(cluster: Cluster, node: Node) -> None:
    async with (
        two_pods(cluster) as pods,
        balancer(pods.first, pods.second) as url,
        node.running(bundled(node, url), url, url=url) as app,
    ):
        pods.say(*WORDS[:100])
        requests = await happens(app, "asks", "shows word99")
        # A glance at the notifications is no sleep.
        assert await happens(app, "becomes inactive", "becomes active") == requests
        await happens(app, "sleeps")
        pods.say(*WORDS[100:200])
        assert await happens(app, "wakes", "shows word199") >= requests + 2
        await happens(app, "joins CELLULAR")
        pods.say(*WORDS[200:300])
        await happens(app, "shows word299")
        await pods.kill()
        pods.say(*WORDS[300:])
        pods.finish()
        app.closes()
        ended = (await app.rest())[-1]
    assert (ended["status"], ended["error"]) == ("ready", None)
    assert ended["chat"] == ended["screen"] == ANSWER
    assert [request for request in ended["requests"] if request.startswith("POST")] == ["POST /v1/ai-sdk/chat"]
