"""How Baton's pages look, measured in headless Chromium: contrast, states, sizes of what is touched, and widths."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, Literal

import pytest
from playwright.async_api import Page, expect
from tests.clients.browsing import PHONE, WIDE, browsing, needs_chromium
from tests.clients.test_browser import START_SECONDS
from tests.support.cluster import Cluster, Tap

from baton.errors import GenerationError

pytestmark = [pytest.mark.timeout(180), needs_chromium]
expect.set_options(timeout=START_SECONDS * 1000)

AA = 4.5
AA_LARGE = 3.0

# The texts of a page whose contrast to what is behind them is too low, by WCAG 2.2 (1.4.3).
FAINT = """
([aa, aaLarge]) => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const mixed = (top, below, alpha) => (top * alpha + below * (255 - alpha)) / 255;
  const over = (top, below) => top.slice(0, 3).map((part, index) => mixed(part, below[index], top[3]));
  const behind = (node) => {
    const layers = [];
    for (let up = node; up; up = up.parentElement) layers.unshift(rgba(getComputedStyle(up).backgroundColor));
    return layers.reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const light = (color) => {
    const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = color.map((part) => linear(part / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility({ visibilityProperty: true })) continue;
    const style = getComputedStyle(node);
    const back = behind(node);
    const front = over(rgba(node instanceof SVGElement ? style.fill : style.color), back);
    const [low, high] = [light(front), light(back)].sort((one, other) => one - other);
    const pixels = parseFloat(style.fontSize);
    const large = pixels >= 24 || (pixels >= 18.66 && Number(style.fontWeight) >= 700);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < (large ? aaLarge : aa)) faint.push(`${walker.currentNode.data.trim()}: ${ratio.toFixed(2)}`);
  }
  return faint;
}
"""

# What can be touched and is lower than 44 pixels, its reach included.
SMALL = """
() => [...document.querySelectorAll("button, input, .where a, #stream-rows a")]
  .filter((node) => node.checkVisibility() && node.getBoundingClientRect().height < 44)
  .map((node) => node.textContent || node.id)
"""
SHAPE = """
node => {
  const style = getComputedStyle(node, "::before");
  return [style.clipPath, style.borderRadius, style.height, style.borderTopWidth, style.content].join(" ");
}
"""


def pod(name: str, **changes: Any) -> dict[str, Any]:
    given = {"id": name, "name": name, "version": "1", "started_at": "2026-01-01T00:00:00Z", "silent_seconds": 0.1}
    return (
        given | {"alive": True, "state": "ready", "listener": "listening", "subscribers": 0, "connections": 0} | changes
    )


@contextlib.asynccontextmanager
async def both(
    cluster: Cluster, scheme: Literal["light", "dark"], size: tuple[int, int]
) -> AsyncIterator[tuple[Page, Tap, str]]:
    tap = Tap()
    await cluster.worker({"replay": tap}, flush_interval_milliseconds=5, worker_heartbeat_seconds=0.1)
    running = await cluster.pod(demo=True, pod_heartbeat_seconds=0.2)
    async with browsing(scheme=scheme, size=size) as page:
        yield page, tap, running.url


async def check(page: Page, size: tuple[int, int]) -> None:
    assert await page.evaluate(FAINT, [AA, AA_LARGE]) == []
    assert await page.evaluate("document.documentElement.scrollWidth") == size[0]
    if size == PHONE:
        assert await page.evaluate(SMALL) == []


@pytest.mark.parametrize("size", [WIDE, PHONE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_both_pages_are_readable_and_usable_by_touch(
    cluster: Cluster, scheme: Literal["light", "dark"], size: tuple[int, int]
) -> None:
    async with both(cluster, scheme, size) as (page, tap, url):
        await page.goto(f"{url}/demo")
        await expect(page.locator("#pods tr")).to_have_count(1)
        await check(page, size)
        await page.get_by_role("button", name="Ask").click()
        tap.let({"type": "reasoning", "delta": "hm"}, {"type": "tool_call", "index": 0, "id": "c", "name": "look"})
        tap.let(
            {"type": "tool_result", "id": "c", "result": {"a": "b" * 300}},
            f"# {'wide' * 60}\n\n[link](https://x.y) `c`",
        )
        tap.let(f"\n\n> quote\n\n```\n{'wide ' * 90}\n```\n\n|{' a |' * 40}\n|{'---|' * 40}\n|{' b |' * 40}\n\n")
        await expect(page.locator("#text table")).to_be_visible()
        await check(page, size)
        console = await page.context.new_page()
        await console.goto(f"{url}/console")
        await expect(console.locator("#stream-rows tr")).to_have_count(1)
        await check(console, size)
        await console.locator("#stream-rows a").click()
        await expect(console.locator("#text table")).to_be_visible()
        await check(console, size)
        tap.fail(GenerationError("provider_error", "It broke."))
        await expect(console.locator("#stream-error")).to_be_visible()
        await check(console, size)
        await expect(page.locator("#state")).to_have_text("failed")
        await check(page, size)


async def test_each_state_has_its_own_text_and_shape(cluster: Cluster) -> None:
    states: dict[str, tuple[dict[str, Any], str, str]] = {
        "a": ({}, "ready", "well"),
        "b": ({"state": "not ready", "listener": "connecting"}, "not ready", "warned"),
        "c": ({"listener": "degraded"}, "ready, polling only", "warned"),
        "d": ({"state": "draining"}, "draining", "warned"),
        "e": ({"alive": False, "silent_seconds": 9.2, "subscribers": None}, "no sign of life for 9 s", "failed"),
    }
    async with both(cluster, "light", WIDE) as (page, _, url):
        shown = page.locator("#pods .state")

        async def overview(route: Any) -> None:
            answer = await route.fetch()
            content = await answer.json()
            content["pods"] = [pod(name, **changes) for name, (changes, _, _) in states.items()]
            await route.fulfill(response=answer, json=content)

        await page.route("**/console/overview*", overview)
        for path in ("demo", "console"):
            await page.goto(f"{url}/{path}")
            await expect(page.locator("#pods tr")).to_have_count(len(states))
            assert await shown.all_inner_texts() == [label for _, label, _ in states.values()]
            assert await shown.evaluate_all("nodes => nodes.map((node) => node.dataset.state)") == [
                state for _, _, state in states.values()
            ]
        shapes = {state: await shown.nth(index).evaluate(SHAPE) for index, (_, _, state) in enumerate(states.values())}
        for status in ("queued", "running", "completed", "cancelled"):
            shapes[status] = await shown.first.evaluate(
                f"node => {{ node.dataset.state = '{status}'; return ({SHAPE})(node); }}"
            )
        assert len(set(shapes.values())) == len(shapes) == 7


async def test_the_console_shows_percentiles_first_tokens_and_viewers(
    cluster: Cluster,
) -> None:
    async with both(cluster, "light", WIDE) as (page, tap, url):
        await page.goto(f"{url}/demo")
        await page.get_by_role("button", name="Ask").click()
        tap.let("one", " two")
        await expect(page.locator("#text")).to_have_text("one two")
        console = await page.context.new_page()
        await console.goto(f"{url}/console")
        cells = console.locator("#stream-rows td")
        await expect(cells.nth(2)).to_have_text(await _first_token(cluster))
        await expect(cells.nth(5)).to_have_text("1")
        await expect(console.locator("#figure-viewers")).to_have_text("1")
        await expect(console.locator(".legend")).to_have_text("p50 p95")
        assert "in 100" not in await console.inner_text("body")
        tap.end()


async def _first_token(cluster: Cluster) -> str:
    """What the row says, in the words of the page."""
    seconds = None
    while seconds is None:
        seconds = await cluster.pool.fetchval("SELECT time_to_first_token_seconds FROM baton.stream")
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"
