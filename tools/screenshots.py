"""`python -m tools.screenshots` makes the pictures of the pages in `docs/images/`. Look at each of them afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import typer
from playwright.async_api import Page, expect
from tests.clients.browsing import PHONE, WIDE, browsing
from tests.clients.test_console_browser import created, enter, row, two_demo_pods, two_demo_workers
from tests.support.access import guarded_pod, make_key
from tests.support.cluster import Cluster, RunningPod

from baton.demo.embedded import embedded_postgres
from baton.errors import GenerationError
from baton.generators import GenerationRequest
from baton.generators.registry import load_generators
from baton.schema.migrate import migrate

IMAGES: Final = Path(__file__).parents[1] / "docs" / "images"
ANSWERS: Final = ("outlive", "weather", "claim")


async def fails(_request: GenerationRequest, /) -> Any:
    yield "So far "
    raise GenerationError("provider_rate_limited", "The provider takes 500 requests a minute, and no more.")


@contextlib.asynccontextmanager
async def busy(cluster: Cluster, pods: list[RunningPod], key: str) -> AsyncIterator[None]:
    """Ask questions, and follow the answers."""
    headers = {"authorization": f"Bearer {key}", "accept": "text/event-stream"}

    async def one() -> None:
        generator = "agent" if random.random() < 0.04 else "replay"
        body = {"input": random.choice(ANSWERS), "generator": generator}
        url = f"{random.choice(pods).url}/v1/streams"
        async with cluster.client.stream("POST", url, json=body, headers=headers) as answer:
            async for _ in answer.aiter_raw():
                pass

    async def all_day() -> None:
        async with asyncio.TaskGroup() as people:
            while True:
                people.create_task(one())
                await asyncio.sleep(random.expovariate(1.2))

    asking = asyncio.create_task(all_day())
    try:
        yield
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def shoot(page: Page, name: str) -> None:
    await page.screenshot(path=IMAGES / f"{name}.png")


async def the_console(cluster: Cluster, seconds: float) -> None:
    _, key = await make_key(cluster)
    settings = cluster.settings()
    for name in ("worker-1", "worker-2"):
        await cluster.worker({**load_generators(settings), "agent": fails}, worker_name=name, worker_concurrency=40)
    pods = [await guarded_pod(cluster, pod_name=f"pod-{name}") for name in "ab"]
    async with busy(cluster, pods, key):
        await asyncio.sleep(seconds)
        for scheme in ("light", "dark"):
            async with browsing(scheme=scheme) as page:
                await enter(page, pods[0], key)
                await expect(page.locator("#stream-rows tr").first).to_be_visible()
                await asyncio.sleep(4)
                await shoot(page, f"console-{scheme}")
                if scheme == "light":
                    live = await created(cluster, pods[0], key, "replay")
                    await row(page, live).get_by_role("link").click()
                    await expect(page.locator("#text")).to_contain_text("we have won")
                    await expect(page.locator("#stream-facts")).to_contain_text("Viewers1")
                    await shoot(page, "stream-light")
                else:
                    failed = await created(cluster, pods[0], key, "agent")
                    await row(page, failed).get_by_role("link").click()
                    await expect(page.locator("#stream-error")).to_be_visible()
                    await expect(page.locator("#text")).to_be_visible()
                    await shoot(page, "failed-dark")
        async with browsing(size=PHONE) as page:
            await enter(page, pods[0], key)
            await expect(page.locator("#stream-rows tr").first).to_be_visible()
            await asyncio.sleep(4)
            await shoot(page, "console-phone")


async def the_demo(cluster: Cluster) -> None:
    for scheme in ("light", "dark"):
        async with (
            two_demo_pods(cluster) as url,
            two_demo_workers(cluster),
            browsing(scheme=scheme, size=WIDE) as page,
        ):
            await page.goto(f"{url}/demo")
            await page.get_by_role("button", name="Ask").click()
            await expect(page.locator("#text")).to_contain_text("The words")
            # A click of the mouse could scroll to the button, and away from the newest text.
            await page.locator("#kill").dispatch_event("click")
            await expect(page.locator(".seam")).to_have_count(1)
            await expect(page.locator("#text")).to_contain_text("a machine disappeared")
            await page.locator("#kill-worker").dispatch_event("click")
            await expect(page.locator(".seam")).to_have_count(2)
            await asyncio.sleep(1)
            await shoot(page, f"demo-{scheme}")


async def main(seconds: float) -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, embedded_postgres(Path(folder)) as dsn:
        await migrate(dsn, days_ahead=1)
        async with Cluster(dsn) as cluster:
            await the_console(cluster, seconds)
        async with Cluster(dsn) as cluster:
            await the_demo(cluster)


def run(seconds: float = typer.Option(600, help="How far back the charts go.")) -> None:
    asyncio.run(main(seconds))


if __name__ == "__main__":
    typer.run(run)
