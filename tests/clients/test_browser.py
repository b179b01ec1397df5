"""The page of docs/clients.md in a real browser, in an application that pods are mounted in."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from tests.clients.balancer import balancer
from tests.clients.pods import ANSWER, WORDS
from tests.support.cluster import Cluster, Tap
from tests.support.logbook import until
from tests.support.mounted import answers
from tests.support.processes import environment

from baton.demo.cluster import reserved_port

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "clients.md"

START_SECONDS = 60  # that a browser may take
SENT = 'baton_events_sent_total{dialect="native.answer"}'

SITE = """
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route

from baton import create_app

baton_app = create_app()


@asynccontextmanager
async def lifespan(app):
    async with baton_app.router.lifespan_context(baton_app):
        yield


async def page(request):
    return HTMLResponse(Path("page.html").read_text())


async def report(request):
    Path("report").write_bytes(await request.body())
    return Response()


routes = [Route("/page", page), Route("/report", report, methods=["POST"]), Mount("/", baton_app)]
app = Starlette(routes=routes, lifespan=lifespan)
"""

# What the test adds to the page: it tells what stands there in the end.
REPORT = """
<script>
  new MutationObserver(() => {
    const text = document.getElementById("answer").textContent;
    fetch("/report", { method: "POST", body: `${document.body.dataset.status} ${text}` });
  }).observe(document.body, { attributes: true });
</script>
"""


@contextlib.asynccontextmanager
async def site(folder: Path, dsn: str, port: int) -> AsyncIterator[Process]:
    """An application with a pod in it, served by plain uvicorn."""
    given = {"BATON_DATABASE_URL": dsn, "BATON_ALLOW_ANONYMOUS": "true", "BATON_DEFAULT_GENERATOR": "tap"}
    command = ("-m", "uvicorn", "site_of_pages:app", "--host", "127.0.0.1", "--port", str(port), "--log-level", "error")
    process = await asyncio.create_subprocess_exec(sys.executable, *command, cwd=folder, env=environment(**given))
    try:
        async with httpx2.AsyncClient(trust_env=False) as client:
            await until(lambda: answers(client, f"http://127.0.0.1:{port}/readyz"), START_SECONDS)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def browser(folder: Path, url: str) -> AsyncIterator[None]:
    assert CHROMIUM is not None
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0")
    process = await asyncio.create_subprocess_exec(
        CHROMIUM, *flags, "--no-proxy-server", f"--user-data-dir={folder}", url, stdout=DEVNULL, stderr=DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the page was not tried in a browser")
async def test_a_page_continues_after_its_pod_was_killed(cluster: Cluster, tmp_path: Path) -> None:
    tap = Tap()
    await cluster.worker({"tap": tap}, flush_interval_milliseconds=5)
    found = re.search(r"```html\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)
    assert found is not None
    (tmp_path / "page.html").write_text(f"<!doctype html><body>{found[1]}{REPORT}")
    (tmp_path / "site_of_pages.py").write_text(SITE)
    with reserved_port() as one, reserved_port() as other:
        async with (
            site(tmp_path, cluster.dsn, one) as first,
            site(tmp_path, cluster.dsn, other),
            balancer(f"http://127.0.0.1:{one}", f"http://127.0.0.1:{other}") as url,
            browser(tmp_path / "profile", f"{url}/page"),
        ):
            # Else a snapshot would tell it all at once.
            await until(lambda: counts(cluster, one, "baton_subscribers", 1), START_SECONDS)
            tap.let(*WORDS[:300])
            await until(lambda: counts(cluster, one, SENT, 200), START_SECONDS)
            first.send_signal(signal.SIGKILL)
            await first.wait()
            tap.let(*WORDS[300:])
            tap.end()
            await until((tmp_path / "report").exists)
            assert await counts(cluster, other, SENT, 1)
    assert (tmp_path / "report").read_text() == f"completed {ANSWER}"


async def counts(cluster: Cluster, port: int, name: str, least: int) -> bool:
    metrics = (await cluster.client.get(f"http://127.0.0.1:{port}/metrics")).text
    found = re.search(rf"^{re.escape(name)} (\S+)", metrics, re.MULTILINE)
    return found is not None and float(found[1]) >= least
