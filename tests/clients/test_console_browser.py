"""The console and the demo's page as a person uses them, in headless Chromium."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import Page, expect
from tests.clients.browsing import PHONE, WIDE, browsing, needs_chromium
from tests.clients.pods import WORDS
from tests.clients.test_browser import START_SECONDS
from tests.support.access import bearer, guarded_pod, make_key
from tests.support.cluster import Cluster, RunningPod, Tap
from tests.support.logbook import until
from tests.support.processes import SERVES, environment, running

from baton.db import inputs
from baton.demo.cluster import reserved_port
from baton.errors import GenerationError
from baton.events import encode_text
from baton.generators import GenerationRequest

pytestmark = [pytest.mark.timeout(180), needs_chromium]
expect.set_options(timeout=START_SECONDS * 1000)

MARKUP = "<img src=x onerror=alert(1)><b>bold</b>"
CALL = {"type": "tool_call", "index": 0, "id": "c", "name": "look_up", "arguments_delta": '{"a": "<i>"}'}
SEEN = """
Object.defineProperty(document, "visibilityState", {{configurable: true, get: () => "{state}"}});
document.dispatchEvent(new Event("visibilitychange"));
"""
QUICK = {"pod_heartbeat_seconds": 0.2}
WORKS = r"Worker (\S+) is ready for"


async def fails(_request: GenerationRequest, /) -> Any:
    yield "so far"
    raise GenerationError("provider_rate_limited", "The provider is <b>full</b>.")


async def enter(page: Page, pod: RunningPod, key: str) -> None:
    await page.goto(f"{pod.url}/console")
    await page.get_by_label("API key").fill(key)
    await page.keyboard.press("Enter")


async def created(cluster: Cluster, pod: RunningPod, key: str, generator: str) -> str:
    body = {"input": "?", "generator": generator}
    answer = await cluster.client.post(f"{pod.url}/v1/streams", json=body, headers=bearer(key))
    stream_id: str = answer.json()["id"]
    return stream_id


def row(page: Page, stream_id: str) -> Any:
    return page.locator(f'tr[data-id="{stream_id}"]')


async def test_a_person_watches_a_stream_and_cancels_it_by_keyboard(cluster: Cluster) -> None:
    _, key = await make_key(cluster)
    tap = Tap()
    await cluster.worker({"tap": tap}, flush_interval_milliseconds=5)
    pod = await guarded_pod(cluster, **QUICK)
    stream_id = await created(cluster, pod, key, "tap")
    tap.let({"type": "reasoning", "delta": "hmm "}, CALL, MARKUP)
    async with browsing() as page:
        await enter(page, pod, "baton_wrong")
        await expect(page.get_by_role("alert")).to_contain_text("The credential is not valid")
        await page.get_by_label("API key").fill(key)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="All is well")).to_be_visible()
        await expect(page.locator("#figure-running")).to_have_text("1")
        await expect(row(page, stream_id)).to_contain_text("Running")
        await expect(row(page, stream_id).locator("td").nth(4)).to_have_text("3")

        await page.keyboard.press("/")
        await page.keyboard.type(stream_id[:20])
        await expect(page.locator("#stream-rows tr")).to_have_count(1)
        await row(page, stream_id).get_by_role("link").focus()
        await page.keyboard.press("Enter")
        sheet = page.get_by_role("dialog")
        await expect(sheet.locator("#reasoning")).to_have_text("hmm")
        await expect(sheet.locator("#tools")).to_contain_text("look_up")
        await expect(sheet.locator("#tools")).to_contain_text('"a": "<i>"')
        # What looks like markup is text, and nothing has come of it.
        await expect(sheet.locator("#text")).to_have_text(MARKUP)
        assert await page.locator("#stream-answer :is(img, b, i)").count() == 0
        tap.let(" and on")
        await expect(sheet.locator("#text")).to_have_text(f"{MARKUP} and on")
        await expect(sheet.locator("#stream-facts")).to_contain_text(re.compile("Viewers1"))

        # It asks back, the harmless answer first; Escape means no.
        for answer in ("Escape", "Enter"):
            await sheet.get_by_role("button", name="Cancel …").focus()
            await page.keyboard.press("Enter")
            await expect(page.get_by_role("button", name="Let it run")).to_be_focused()
            await page.keyboard.press(answer)
            await expect(page.get_by_role("alertdialog")).to_be_hidden()
        assert not tap.cancelled.is_set()
        await sheet.get_by_role("button", name="Cancel …").focus()
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await expect(sheet.locator("#stream-state")).to_have_text("Cancelled")
        await until(tap.cancelled.is_set)

        await page.keyboard.press("Escape")
        await expect(sheet).to_be_hidden()
        await expect(row(page, stream_id).get_by_role("link")).to_be_focused()
        await expect(row(page, stream_id)).to_contain_text("Cancelled")
        found = await cluster.pool.fetchrow("SELECT * FROM baton.stream")
        assert found is not None
        first, tokens = found["time_to_first_token_seconds"], found["tokens"]
        assert tokens == 4
        told = await row(page, stream_id).locator("td").all_inner_texts()
        assert told[2] == (f"{first * 1000:.0f} ms" if first < 0.9995 else f"{first:.2f} s")
        # Its events are its tokens and its end.
        assert told[4] == str(await cluster.pool.fetchval("SELECT max(last_seq) FROM baton.batch")) == str(tokens + 1)

        # The key is this tab's, outlives a reload, and is forgotten on demand.
        await page.reload()
        await expect(row(page, stream_id)).to_contain_text("Cancelled")
        await page.get_by_role("button", name="Forget the key").click()
        await expect(page.get_by_label("API key")).to_be_focused()
        await page.reload()
        await expect(page.get_by_label("API key")).to_be_visible()


async def test_a_person_sees_where_another_worker_continues_an_answer(cluster: Cluster) -> None:
    pod = await cluster.pod(**QUICK)
    author = await cluster.author()
    await author.write(encode_text("An answer outlives its pod, and its wor"))
    async with browsing() as page:
        await page.goto(f"{pod.url}/console#{author.id}")
        sheet = page.get_by_role("dialog")
        await expect(sheet.locator("#text")).to_have_text("An answer outlives its pod, and its wor")
        await expect(sheet.locator("#stream-facts")).to_contain_text("Runs1Attempts1Interrupted")
        await author.interrupt("worker_left")
        await expect(sheet.locator("#stream-state")).to_have_text("Queued")
        await author.resume()
        await author.write(encode_text("ker, too."), end=True)
        await expect(sheet.locator(".seam")).to_have_text("another worker from here")
        await expect(sheet.locator("#text")).to_contain_text("its worker,another worker from here too.")
        await expect(sheet.locator("#stream-facts")).to_contain_text("Runs2Attempts2InterruptedIts worker left")


@pytest.mark.slow
async def test_a_failed_stream_shows_its_reason_to_a_key_without_read_access(cluster: Cluster) -> None:
    _, creator = await make_key(cluster, "create")
    _, admin = await make_key(cluster, "admin")
    await cluster.worker({"fails": fails})
    pod = await guarded_pod(cluster, **QUICK)
    stream_id = await created(cluster, pod, creator, "fails")
    async with browsing(scheme="dark", size=PHONE) as page:
        await enter(page, pod, creator)
        await expect(page.get_by_role("alert")).to_contain_text("This needs the scope admin")
        await enter(page, pod, admin)
        await page.get_by_role("button", name="Failed").click()
        failed = row(page, stream_id)
        await expect(failed).to_contain_text("provider_rate_limited")
        assert await page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
        await failed.get_by_role("link").click()
        sheet = page.get_by_role("dialog")
        await expect(sheet.locator("#stream-error")).to_contain_text("The provider is <b>full</b>.")
        await expect(sheet.locator("#stream-note")).to_contain_text("This key may not read conversations")
        await expect(sheet.get_by_role("button", name="Cancel …")).to_be_hidden()
        await expect(sheet.locator("#text")).to_be_hidden()
        entry = sheet.get_by_role("link", name="What this means")
        assert await entry.get_attribute("href") == "/errors#provider_rate_limited"
        async with page.expect_popup() as opening:
            await entry.click()
        explained = await opening.value
        await expect(explained.locator("#provider_rate_limited")).to_be_visible()


@pytest.mark.slow
async def test_the_console_reports_lost_pods_and_continues_with_the_next(cluster: Cluster) -> None:
    pod = await cluster.pod(**QUICK)
    async with browsing() as page:
        await page.goto(f"{pod.url}/console")
        # Nobody is asked for a key where nobody needs one.
        await expect(page.get_by_role("heading", name="Needs attention")).to_be_visible()
        await expect(page.locator("#verdict-list")).to_have_text("No worker is alive, so nothing is generated.")
        await expect(page.locator("#no-streams")).to_contain_text("No streams yet")
        # A stream that a producer writes needs none.
        await cluster.create(pod, generator="external")
        await expect(page.get_by_role("heading", name="All is well")).to_be_visible()
        await expect(page.locator("#no-workers")).to_be_hidden()
        await page.context.set_offline(True)
        await expect(page.get_by_role("alert")).to_contain_text("No pod answers. Trying again")
        await page.context.set_offline(False)
        await expect(page.get_by_role("alert")).to_be_hidden()


@pytest.mark.slow
async def test_a_hidden_page_sends_no_requests(cluster: Cluster) -> None:
    pod = await cluster.pod(**QUICK)
    asked: list[str] = []
    async with browsing() as page:
        await page.clock.install()
        page.on("request", lambda request: asked.append(request.url))
        await page.goto(f"{pod.url}/console")
        await expect(page.locator("#no-streams")).to_be_visible()
        await page.evaluate(SEEN.format(state="hidden"))
        before = len(asked)
        await page.clock.run_for(60_000)
        assert len(asked) == before
        await page.evaluate(SEEN.format(state="visible"))
        await until(lambda: len(asked) > before)
        # From then on it asks again and again.
        again = len(asked)
        await until(lambda: len(asked) > again + 2)


@contextlib.asynccontextmanager
async def two_demo_pods(cluster: Cluster) -> AsyncIterator[str]:
    """Two pods on one port, as the demo has them, of which the browser gets any."""
    with reserved_port() as port:
        env = environment(
            BATON_DATABASE_URL=cluster.dsn,
            BATON_ALLOW_ANONYMOUS="true",
            BATON_DEMO="true",
            BATON_PORT=str(port),
            BATON_POD_HEARTBEAT_SECONDS="0.2",
        )
        async with (
            running("serve", env=env | {"BATON_POD_NAME": "pod-a"}) as one,
            running("serve", env=env | {"BATON_POD_NAME": "pod-b"}) as other,
        ):
            await one.said(SERVES)
            await other.said(SERVES)
            yield f"http://127.0.0.1:{port}"


@contextlib.asynccontextmanager
async def two_demo_workers(cluster: Cluster) -> AsyncIterator[None]:
    """Two workers that play recorded answers, and that the demo's page can kill."""
    env = environment(
        BATON_DATABASE_URL=cluster.dsn,
        BATON_DEMO="true",
        BATON_LEASE_SECONDS="2",
        BATON_WORKER_HEARTBEAT_SECONDS="0.25",
    )
    async with (
        running("worker", env=env | {"BATON_WORKER_NAME": "worker-a"}) as one,
        running("worker", env=env | {"BATON_WORKER_NAME": "worker-b"}) as other,
    ):
        await one.said(WORKS)
        await other.said(WORKS)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("size", [WIDE, PHONE])
async def test_a_person_kills_the_worker_that_writes_an_answer(cluster: Cluster, size: tuple[int, int]) -> None:
    seam = "another worker from here"
    async with (
        two_demo_pods(cluster) as url,
        two_demo_workers(cluster),
        browsing(size=size) as page,
    ):
        await page.goto(f"{url}/demo")
        await page.get_by_role("button", name="With a tool call").click()
        await expect(page.locator("#state")).to_have_text("completed")
        whole = await page.locator("#text").text_content()
        events = await page.locator("#cursor").inner_text()
        await page.get_by_role("button", name="With a tool call").click()
        await expect(page.locator("#text")).to_be_visible()
        await expect(page.locator("#worker")).to_have_text(re.compile("worker-[ab]"))
        killed = await page.locator("#worker").inner_text()
        await page.get_by_role("button", name=f"Kill this worker ({killed})").click()
        await expect(page.locator("#state")).to_have_text("waiting")
        survivor = "worker-b" if killed == "worker-a" else "worker-a"
        await expect(page.locator("#worker")).to_have_text(survivor)
        more = int(events) + 1  # the event `resumed`
        await expect(page.locator("#judged")).to_have_text(
            f"{more} events, numbered 1 to {more}: 0 missing, 0 repeated. Another worker continued it."
        )
        await expect(page.locator(".seam")).to_have_text(seam)
        told = await page.locator("#text").text_content()
        assert told is not None
        assert told.replace(seam, "") == whole
        await expect(page.locator("#log")).to_contain_text(f"{survivor} continues after event ")
        assert await page.evaluate("document.documentElement.scrollWidth") == size[0]


@pytest.mark.slow
@pytest.mark.parametrize("size", [WIDE, PHONE])
async def test_a_person_kills_the_pod_that_serves_an_answer(cluster: Cluster, size: tuple[int, int]) -> None:
    tap = Tap()
    await cluster.worker({"replay": tap}, flush_interval_milliseconds=5)
    async with two_demo_pods(cluster) as url, browsing(size=size) as page:
        await page.goto(f"{url}/demo")
        await page.get_by_label("Your question").fill("Who tells this?")
        await page.keyboard.press("Enter")
        tap.let(*WORDS[:300])
        await expect(page.locator("#text")).to_contain_text(WORDS[299])
        killed = await page.locator("#pod").inner_text()
        await page.get_by_role("button", name=f"Kill this pod ({killed})").click()
        survivor = "pod-b" if killed == "pod-a" else "pod-a"
        await expect(page.locator("#pod")).to_have_text(survivor)
        tap.let(*WORDS[300:])
        tap.end()
        await expect(page.locator("#judged")).to_have_text(
            f"{len(WORDS) + 1} events, numbered 1 to {len(WORDS) + 1}: 0 missing, 0 repeated."
        )
        seam = page.locator(".seam")
        await expect(seam).to_have_text(f"{survivor} from here")
        told = await page.locator("#text").text_content()
        assert told is not None
        assert told.replace(f"{survivor} from here", "") == "".join(WORDS)
        await expect(page.locator("#cursor")).to_have_text(str(len(WORDS) + 1))
        await expect(page.locator("#log")).to_contain_text(f"{survivor} continues after event 300")
        assert await page.evaluate("document.documentElement.scrollWidth") == size[0]


async def test_a_person_approves_what_a_stream_waits_for(cluster: Cluster) -> None:
    _, key = await make_key(cluster)
    pod = await guarded_pod(cluster, **QUICK)
    author = await cluster.author(tenant="acme")
    await author.wait({"type": "approval", "calls": ["call_1", "call_2"]})
    async with browsing() as page:
        await enter(page, pod, key)
        await expect(page.locator("#note-running")).to_contain_text("and 1 waiting")
        await page.get_by_role("button", name="Waiting").click()
        await expect(row(page, str(author.id))).to_contain_text("Waiting")
        await expect(row(page, str(author.id))).to_contain_text("waiting for")
        await row(page, str(author.id)).get_by_role("link").click()
        sheet = page.get_by_role("dialog")
        await expect(sheet.locator("#wait-title")).to_have_text("It waits for approval")
        await expect(sheet.locator("#wait-times")).to_contain_text("until")
        calls = sheet.locator("#wait-calls li")
        await expect(calls).to_have_count(2)
        # Another person has denied the second one already. That has queued the stream, which still lacks an answer.
        denied = {"type": "approval", "call_id": "call_2", "approved": False, "reason": None}
        url, other = f"{pod.url}/v1/streams/{author.id}/inputs", {"idempotency-key": "console-1-call_2"}
        sent = await cluster.client.post(url, json={"data": denied}, headers=bearer(key) | other)
        assert sent.status_code == 201
        await expect(sheet.locator("#wait-times")).to_contain_text("An input came.")
        await calls.nth(1).get_by_role("button", name="Approve").click()
        await expect(calls.nth(1)).to_contain_text("Somebody has answered it differently.")
        await calls.nth(0).get_by_role("button", name="Approve").click()
        await expect(calls.nth(0)).to_contain_text("Approved.")
        await expect(calls.nth(0).get_by_role("button", name="Deny")).to_be_disabled()
        await sheet.get_by_label("Send an input").fill('{"type": "message"}')
        await sheet.get_by_role("button", name="Send", exact=True).click()
        await expect(sheet.locator("#input-note")).to_have_text("Sent as input 3.")
    found = [item.data for item in await inputs.read(cluster.pool, author.id, 0)]
    assert found == [denied, denied | {"call_id": "call_1", "approved": True}, {"type": "message"}]


async def test_what_a_stream_waits_for_needs_the_right_to_read_and_to_answer(cluster: Cluster) -> None:
    _, key = await make_key(cluster, "admin")
    pod = await guarded_pod(cluster, **QUICK)
    author = await cluster.author(tenant="acme")
    await author.wait({"question": MARKUP})
    async with browsing() as page:
        await enter(page, pod, key)
        await row(page, str(author.id)).get_by_role("link").click()
        sheet = page.get_by_role("dialog")
        await expect(sheet.locator("#wait-title")).to_be_visible()
        await expect(sheet.locator("#wait-for")).to_be_hidden()
        await expect(sheet.locator("#input-form")).to_be_hidden()
        _, reader = await make_key(cluster, "admin", "read")
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="Forget the key").click()
        await page.get_by_label("API key").fill(reader)
        await page.keyboard.press("Enter")
        await row(page, str(author.id)).get_by_role("link").click()
        await expect(sheet.locator("#wait-for")).to_contain_text(MARKUP)
        await expect(sheet.locator("#input-form")).to_be_hidden()
