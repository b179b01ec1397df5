"""A person at a page: Chromium, driven by Playwright, which brings no browser of its own here."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from typing import Literal

import pytest
from playwright.async_api import Page, async_playwright
from tests.clients.test_browser import CHROMIUM, START_SECONDS

WIDE, PHONE = (1280, 860), (390, 844)
# What a browser says by itself of requests that are refused, or cut.
EXPECTED = "Failed to load resource"

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the pages were not looked at")


@contextlib.asynccontextmanager
async def browsing(
    *,
    scheme: Literal["light", "dark"] = "light",
    size: tuple[int, int] = WIDE,
    expected: str = EXPECTED,
) -> AsyncIterator[Page]:
    """Open an empty page; at the size of a phone, one that is touched.

    What a page complains about, its policy of contents included, fails the test, but for what matches `expected`.
    """
    complaints: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--no-proxy-server"], timeout=START_SECONDS * 1000
        )
        viewport = {"width": size[0], "height": size[1]}
        phone = size == PHONE
        context = await browser.new_context(
            color_scheme=scheme,
            viewport=viewport,  # type: ignore[arg-type]
            reduced_motion="reduce",
            is_mobile=phone,
            has_touch=phone,
        )
        context.set_default_timeout(START_SECONDS * 1000)
        page = await context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda told: complaints.append(told.text) if told.type == "error" else None)
        try:
            yield page
        finally:
            await browser.close()
    assert [text for text in complaints if not re.search(expected, text)] == []
