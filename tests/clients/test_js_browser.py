"""The npm package in Chromium: in a page of React, and as the module that pods serve."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

import pytest
from bench.packages import INSTALL_SECONDS
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from tests.clients.balancer import balancer
from tests.clients.browsing import EXPECTED, browsing, needs_chromium
from tests.clients.node import JAVASCRIPT
from tests.clients.pods import ANSWER, WORDS, two_pods
from tests.support.cluster import Cluster, echo
from tests.support.serving import served
from tools.js_client import BUILDS, build, integrity
from tools.js_client import run as run_tool

from baton.api.browser_builds import NEWEST

pytestmark = [needs_chromium, pytest.mark.timeout(INSTALL_SECONDS + 120), pytest.mark.xdist_group("js-client")]

DOCUMENTED: Final = "https://pods.example.com"
REACT: Final = {18: ("--alias:react=react-18", "--alias:react-dom=react-dom-18"), 19: ()}
# It asks once, and keeps the stream's id in its address.
PAGE: Final = """
import { StrictMode, version } from "react";
import { createRoot } from "react-dom/client";
import { create } from "baton-stream";
import { Answer } from "./answer.jsx";

document.title = version;
const url = "PODS";
if (!location.hash) location.hash = (await create(url, { generator: "tap", input: null })).id;
const stream = { url, id: location.hash.slice(1) };
createRoot(document.getElementById("page")).render(<StrictMode><Answer stream={stream} /></StrictMode>);
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built."""
    folder = tmp_path_factory.mktemp("js-browser")
    build(folder)
    return folder


class Site:
    """Pages of another origin than the pods'."""

    def __init__(self, policy: str = "") -> None:
        self.html = ""
        self.script = b""
        self._policy = policy
        self.app = Starlette(routes=[Route("/", self.page), Route("/page.js", self.module)])

    async def page(self, _request: Request) -> Response:
        headers = {"content-security-policy": self._policy} if self._policy else {}
        return HTMLResponse(
            f"<!doctype html><link rel=icon href=data:,><div id=page></div>{self.html}", headers=headers
        )

    async def module(self, _request: Request) -> Response:
        return Response(self.script, media_type="text/javascript")


def bundled(package: Path, react: int, pods: str, folder: Path) -> bytes:
    """Return the page with the documented component, bundled with a version of React."""
    component = re.search(r"```jsx\n(// answer\.jsx\n.*?)```", JAVASCRIPT.read_text(), re.DOTALL)
    assert component is not None
    source = package / f"page-{react}"
    source.mkdir()
    (source / "answer.jsx").write_text(component[1])
    (source / "page.jsx").write_text(PAGE.replace("PODS", pods))
    out = folder / "page.js"
    entry = str(source.relative_to(package) / "page.jsx")
    run_tool(
        package, "esbuild", entry, "--bundle", "--format=esm", "--jsx=automatic", f"--outfile={out}", *REACT[react]
    )
    shutil.rmtree(source)
    return out.read_bytes()


@pytest.mark.parametrize("react", REACT)
async def test_a_react_page_is_loaded_again_and_its_pod_is_killed(
    cluster: Cluster, package: Path, tmp_path: Path, react: int
) -> None:
    site = Site()
    site.html = '<script type="module" src="/page.js"></script>'
    async with (
        served(site.app) as origin,
        two_pods(cluster, allowed_origins=origin) as pods,
        balancer(pods.first, pods.second) as url,
        browsing() as page,
    ):
        site.script = bundled(package, react, url, tmp_path)
        await page.goto(origin)
        pods.say(*WORDS[:200])
        await page.get_by_text(WORDS[150]).wait_for()
        assert (await page.title()).startswith(f"{react}.")
        await page.reload()
        await page.get_by_text(WORDS[150]).wait_for()
        pods.say(*WORDS[200:400])
        await page.get_by_text(WORDS[350]).wait_for()
        await pods.kill()
        pods.say(*WORDS[400:])
        pods.finish()
        await page.locator("article[aria-busy=false]").wait_for()
        assert await page.locator("article").evaluate("(article) => article.textContent") == ANSWER


async def test_a_react_page_stops_its_stream(cluster: Cluster, package: Path, tmp_path: Path) -> None:
    site = Site()
    site.html = '<script type="module" src="/page.js"></script>'
    async with served(site.app) as origin, two_pods(cluster, allowed_origins=origin) as pods, browsing() as page:
        site.script = bundled(package, 19, pods.first, tmp_path)
        await page.goto(origin)
        pods.say("Hello")
        await page.get_by_role("button", name="Stop").click()
        await page.locator("article[aria-busy=false]").wait_for()
        assert await page.locator("article").evaluate("(article) => article.textContent") == "Hello"
        stream_id = page.url.partition("#")[2]
        assert (await cluster.client.get(f"{pods.first}/v1/streams/{stream_id}")).json()["status"] == "cancelled"


ASKS: Final = """
  const stream = await create("PODS", { generator: "replay", input: ["a", "b"] });
  let text = "";
  for await (const event of follow(stream)) if (event.type === "text") text += event.delta;
  document.getElementById("page").textContent = text;
"""


def documented(language: str, beginning: str) -> str:
    found = re.search(rf"```{language}\n({re.escape(beginning)}.*?)```", JAVASCRIPT.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def page_of(pods: str) -> tuple[str, str]:
    """Return the documented page, which asks and shows the answer, and its policy."""
    html = documented("html", '<script type="importmap">').replace("</script>\n", "</script>", 1)
    html = re.sub(r'(} from "baton-stream";)', lambda found: found[1] + ASKS, html).replace("PODS", DOCUMENTED)
    policy = documented("", "script-src").replace("nonce-…", "nonce-once").strip()
    return html.replace("<script", '<script nonce="once"').replace(DOCUMENTED, pods), policy.replace(DOCUMENTED, pods)


async def test_the_documented_page_runs_under_the_documented_policy(cluster: Cluster) -> None:
    await cluster.worker({"replay": echo})
    site = Site()
    async with served(site.app) as origin:
        pod = await cluster.pod(allowed_origins=origin)
        site.html, site._policy = page_of(pod.url)
        async with browsing() as page:
            await page.goto(origin)
            await page.get_by_text("ab").wait_for()


async def test_a_module_with_another_hash_is_refused(cluster: Cluster) -> None:
    site = Site()
    async with served(site.app) as origin:
        pod = await cluster.pod(allowed_origins=origin)
        html, site._policy = page_of(pod.url)
        site.html = html.replace(integrity((BUILDS / NEWEST).read_bytes()), integrity(b"another"))
        assert site.html != html
        async with (
            browsing(expected=rf"{EXPECTED}|integrity") as page,
            page.expect_console_message(lambda message: "integrity" in message.text),
        ):
            await page.goto(origin)


async def test_a_page_without_inline_scripts_needs_no_nonce(cluster: Cluster) -> None:
    await cluster.worker({"replay": echo})
    site = Site()
    async with served(site.app) as origin:
        pod = await cluster.pod(allowed_origins=origin)
        address, hashed = f"{pod.url}/client/{NEWEST}", integrity((BUILDS / NEWEST).read_bytes())
        site._policy = f"script-src 'self' {pod.url}; connect-src {pod.url}"
        preload = f'<link rel="modulepreload" href="{address}" integrity="{hashed}" crossorigin>'
        site.html = f'{preload}<script type="module" src="/page.js"></script>'
        for imported in (address, f"{pod.url}/client.js"):
            site.script = f'import {{ create, follow }} from "{imported}";{ASKS}'.replace("PODS", pod.url).encode()
            async with browsing() as page:
                await page.goto(origin)
                await page.get_by_text("ab").wait_for()
