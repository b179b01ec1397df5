"""The pages behind a proxy that takes a part of the path off, in headless Chromium."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import expect
from tests.clients.browsing import browsing, needs_chromium
from tests.clients.test_browser import START_SECONDS
from tests.integration.api.test_path_prefix import pod_behind
from tests.support.cluster import Cluster
from tests.support.nginx import needs_nginx

pytestmark = [pytest.mark.timeout(180), needs_chromium, needs_nginx]
expect.set_options(timeout=START_SECONDS * 1000)
WORDS = ["Behind ", "a ", "proxy."]


@pytest.mark.parametrize("mount", ["", "/inner"])
async def test_the_demo_and_the_console_work(cluster: Cluster, tmp_path: Path, mount: str) -> None:
    async def says(_request: object, /) -> object:
        for word in WORDS:
            yield word

    await cluster.worker({"replay": says})  # type: ignore[dict-item]
    given = {"demo": True, "trusted_proxies": "127.0.0.1", "pod_heartbeat_seconds": 0.2}
    async with pod_behind(cluster, tmp_path, mount=mount, **given) as (address, prefix), browsing() as page:
        await page.goto(f"{address}{prefix}/demo")
        await page.get_by_label("Your question").fill("Where are you?")
        await page.keyboard.press("Enter")
        await expect(page.locator("#text")).to_have_text("".join(WORDS))
        await expect(page.locator("#judged")).to_contain_text("0 missing, 0 repeated")
        await page.get_by_role("link", name="Console").click()
        await page.wait_for_url(f"{address}{prefix}/console")
        (stream,) = await cluster.pool.fetch("SELECT id FROM baton.stream")
        await page.locator(f'tr[data-id="{stream["id"]}"]').click()
        await expect(page.get_by_text("".join(WORDS))).to_be_visible()
        await page.screenshot(path=tmp_path / "console.png")
