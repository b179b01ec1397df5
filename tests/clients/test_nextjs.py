"""The AI SDK's route handler in Next.js, with Baton behind it: clients follow Baton, and the handler may die."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from bench.packages import INSTALL_SECONDS
from playwright.async_api import Page
from standardwebhooks import Webhook
from tests.clients.browsing import EXPECTED, browsing, needs_chromium
from tests.clients.durable_streams_node import scripts_in
from tests.clients.node import Node, Script
from tests.clients.route_handler import (
    BUILD_SECONDS,
    CALL,
    EXAMPLE,
    PACKAGES,
    QUESTION,
    REASONING,
    THROWS,
    WEBHOOK_SECRET,
    App,
    built_example,
    serving_app,
)
from tests.support.access import TENANT
from tests.support.cluster import Cluster, text
from tests.support.provider_server import refusal

WORDS = [f"word{number} " for number in range(60)]
HALF = 30
ANSWER = "".join(WORDS)
BEGINNING = "".join(WORDS[:HALF])
VIEWERS = {"useChat", "EventSource", "OpenAI", "Durable Streams"}
LOST = "This answer was interrupted and could not be finished: what wrote it has stopped."

pytestmark = [pytest.mark.timeout(INSTALL_SECONDS + BUILD_SECONDS + 120), pytest.mark.xdist_group("nextjs")]


@pytest.fixture(scope="module")
def example() -> Iterator[Path]:
    with built_example() as folder:
        yield folder


@dataclass(slots=True)
class Viewers:
    """Everybody who follows one answer."""

    scripts: list[Script]
    stream: str

    async def all_say(self, event: str) -> dict[str, dict[str, Any]]:
        """Wait until each viewer says this; return what each says."""
        await asyncio.gather(*(self._read(script, event) for script in self.scripts))
        said = [line for script in self.scripts for line in script.said if line["event"] == event]
        assert {line["viewer"] for line in said} == VIEWERS
        return {line["viewer"]: line for line in said}

    async def _read(self, script: Script, event: str) -> None:
        count = 3 if script is self.scripts[0] else 1
        while sum(line["event"] == event for line in script.said) < count:
            await script.says(event)


@contextlib.asynccontextmanager
async def following(node: Node, folder: Path, app: App) -> AsyncIterator[Viewers]:
    """Ask the example, and follow the answer with every client at once."""
    half = WORDS[HALF - 1]
    pod = app.pod.url
    async with node.running("follow_all.mjs", app.url, pod, app.key, QUESTION, half) as three:
        stream = (await three.says("id"))["id"]
        url = f"{pod}/v1/stream/{stream}"
        async with scripts_in(folder).running("viewer.mjs", url, app.key, half) as fourth:
            yield Viewers([three, fourth], stream)


async def test_every_client_gets_the_exact_answer_of_a_route_handler(
    cluster: Cluster, node: Node, tmp_path: Path, example: Path
) -> None:
    async with serving_app(cluster, example, WORDS) as app, following(node, tmp_path, app) as viewers:
        app.model.pace.release(HALF)
        await viewers.all_say("half")
        app.model.pace.release()
        ends = await viewers.all_say("end")
    assert {end["text"] for end in ends.values()} == {ANSWER}
    assert {(end["status"], end["error"]) for end in ends.values()} == {("completed", None)}
    parts = ends["useChat"]["parts"]
    assert [part["type"] for part in parts] == ["step-start", "reasoning", "tool-clock", "step-start", "text"]
    assert parts[1]["text"] == REASONING
    assert (parts[2]["input"], parts[2]["state"]) == (json.loads(CALL["arguments"]), "output-available")
    assert ends["OpenAI"]["reasoning"] == REASONING
    assert ends["OpenAI"]["kinds"] == ["reasoning", "mcp_call", "message"]
    (result,) = (event["result"] for event in ends["EventSource"]["events"] if event["type"] == "tool_result")
    assert result == parts[2]["output"]


@pytest.mark.parametrize("by", [signal.SIGKILL, THROWS])
async def test_every_client_learns_that_the_handlers_process_ended(
    cluster: Cluster, node: Node, tmp_path: Path, example: Path, by: signal.Signals
) -> None:
    async with (
        serving_app(cluster, example, WORDS, idle_timeout_seconds=3) as app,
        following(node, tmp_path, app) as viewers,
    ):
        app.model.pace.release(HALF)
        await viewers.all_say("half")
        app.process.signal(by)
        await app.process.ends()
        ends = await viewers.all_say("end")
    assert {end["text"] for end in ends.values()} == {BEGINNING}
    judge_failed(ends, "producer_lost", LOST)


async def test_a_server_that_is_stopped_finishes_its_answer(
    cluster: Cluster, node: Node, tmp_path: Path, example: Path
) -> None:
    async with serving_app(cluster, example, WORDS) as app, following(node, tmp_path, app) as viewers:
        app.model.pace.release(HALF)
        await viewers.all_say("half")
        app.process.signal(signal.SIGTERM)
        app.model.pace.release()
        ends = await viewers.all_say("end")
        await app.process.ends()
    assert {(end["text"], end["status"]) for end in ends.values()} == {(ANSWER, "completed")}


async def test_every_client_learns_that_the_model_refused_the_handler(
    cluster: Cluster, node: Node, tmp_path: Path, example: Path
) -> None:
    async with serving_app(cluster, example, WORDS) as app:
        app.model.refuses = refusal(401, {"message": "The key sk-secret is invalid."})
        async with following(node, tmp_path, app) as viewers:
            ends = await viewers.all_say("end")
    assert {end["text"] for end in ends.values()} == {""}
    judge_failed(ends, "provider_auth_failed", "The model provider refused the credentials, or this use of them.")


async def test_every_client_learns_that_the_model_broke_off(
    cluster: Cluster, node: Node, tmp_path: Path, example: Path
) -> None:
    async with serving_app(cluster, example, WORDS) as app:
        app.model.breaks_after = HALF
        app.model.pace.release()
        async with following(node, tmp_path, app) as viewers:
            ends = await viewers.all_say("end")
    assert {end["text"] for end in ends.values()} == {BEGINNING}
    judge_failed(ends, "provider_cut_off", "The model provider's answer ended before it was complete.")


async def test_a_cancel_aborts_the_call_of_the_model(
    cluster: Cluster, node: Node, tmp_path: Path, example: Path
) -> None:
    async with serving_app(cluster, example, WORDS) as app, following(node, tmp_path, app) as viewers:
        app.model.pace.release(HALF)
        await viewers.all_say("half")
        stopped = await cluster.client.post(f"{app.url}/api/chat/42/stop")
        assert stopped.status_code == 204
        ends = await viewers.all_say("end")
        async with asyncio.timeout(30):
            await app.model.left.wait()
    assert {end["text"] for end in ends.values()} == {BEGINNING}
    assert {end["status"] for end in ends.values()} == {"cancelled"}


def judge_failed(ends: dict[str, dict[str, Any]], code: str, message: str) -> None:
    """Each client has the code and the sentence, in its own way."""
    assert {end["status"] for end in ends.values()} == {"failed"}
    assert ends["useChat"]["error"] == f"{message} ({code})"
    assert ends["OpenAI"]["error"] == {"code": "server_error", "message": f"{message} ({code})"}
    for viewer in ("EventSource", "Durable Streams"):
        assert ends[viewer]["error"] == {"code": code, "message": message}


@contextlib.asynccontextmanager
async def asking(app: App) -> AsyncIterator[Page]:
    """Open the example's page, and ask."""
    async with browsing(expected=f"{EXPECTED}|producer_lost") as page:
        await page.goto(app.url)
        await ask(page, QUESTION)
        app.model.pace.release(HALF)
        await page.get_by_text(BEGINNING.strip()).wait_for()
        yield page


async def ask(page: Page, question: str) -> None:
    await page.get_by_label("Message").fill(question)
    await page.get_by_role("button", name="Send").click()


@needs_chromium
async def test_a_page_continues_after_a_reload_and_asks_again(cluster: Cluster, example: Path) -> None:
    async with serving_app(cluster, example, WORDS) as app, asking(app) as page:
        await page.reload()
        await page.get_by_text(BEGINNING.strip()).wait_for()
        app.model.pace.release(len(WORDS) - HALF)
        await page.get_by_text(ANSWER.strip()).wait_for()
        assert await page.get_by_text(WORDS[0].strip()).count() == 1
        await page.get_by_role("button", name="Send").wait_for()
        app.model.pace.release()
        await ask(page, "And now?")
        await page.get_by_text(ANSWER.strip()).nth(1).wait_for()
    # The model's API gets the earlier call with its result: otherwise it would refuse the conversation.
    roles = [[message["role"] for message in prompt] for prompt in app.model.prompts]
    first = ["user", "assistant", "tool"]
    assert roles == [first[:1], first, [*first, "assistant", "user"], [*first, "assistant", *first]]


@needs_chromium
async def test_a_chat_is_saved_though_its_handler_died_and_baton_has_forgotten_it(
    cluster: Cluster, example: Path
) -> None:
    async with serving_app(cluster, example, WORDS, idle_timeout_seconds=3) as app, asking(app) as page:
        path = page.url.removeprefix(app.url)
        app.process.signal(signal.SIGKILL)
        await app.process.ends()
        await page.get_by_text(f"{LOST} (producer_lost)").wait_for()
    async with serving_app(cluster, example, WORDS) as app, browsing() as page:
        # The first visit saves what Baton has; at the second, it has nothing.
        for _ in range(2):
            await page.goto(app.url + path)
            await page.get_by_text(QUESTION).wait_for()
            assert await page.get_by_text(BEGINNING.strip()).count() == 1
            await cluster.pool.execute("DELETE FROM baton.stream")


@needs_chromium
async def test_a_page_stops_an_answer(cluster: Cluster, example: Path) -> None:
    async with serving_app(cluster, example, WORDS) as app, asking(app) as page:
        await page.get_by_role("button", name="Stop").click()
        await page.get_by_role("button", name="Send").wait_for()
        async with asyncio.timeout(30):
            await app.model.left.wait()
        assert await page.locator("p[role=alert]").count() == 0


@needs_chromium
async def test_a_page_learns_that_the_server_that_served_it_was_killed(cluster: Cluster, example: Path) -> None:
    async with serving_app(cluster, example, WORDS, idle_timeout_seconds=3) as app, asking(app) as page:
        app.process.signal(signal.SIGKILL)
        await app.process.ends()
        await page.get_by_text(f"{LOST} (producer_lost)").wait_for()
        await page.get_by_text(BEGINNING.strip()).wait_for()


async def test_a_webhook_saves_a_chat_and_a_forged_one_does_not(cluster: Cluster, example: Path) -> None:
    async with serving_app(cluster, example, WORDS) as app:
        author = await cluster.author(tenant=TENANT, chat="saved")
        await author.write(text(1), end=True)
        saved = example / ".chats" / "saved.json"
        body = json.dumps({"type": "stream.completed", "data": {"metadata": {"chat": "saved"}}})
        for secret, status in ((b"another", 401), (WEBHOOK_SECRET, 204)):
            assert not saved.exists()
            answer = await cluster.client.post(f"{app.url}/api/baton", content=body, headers=signed(body, secret))
            assert answer.status_code == status
        assert "assistant" in [message["role"] for message in json.loads(saved.read_text())]


def signed(body: str, secret: bytes) -> dict[str, str]:
    now = datetime.now(UTC)
    signature = Webhook(secret).sign("msg_1", now, body)
    return {"webhook-id": "msg_1", "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signature}


@pytest.mark.parametrize("page", ["clients/js/README.md", "docs/nextjs.md", "docs/saving-answers.md"])
def test_documented_routes_are_those_of_the_example(page: str) -> None:
    blocks = re.findall(r"```ts\n// (\S+).*?\n(.*?)```", (EXAMPLE.parent.parent / page).read_text(), re.DOTALL)
    found = [(path, block) for path, block in blocks if (EXAMPLE / path).exists()]
    assert found
    for path, block in found:
        lines = iter((EXAMPLE / path).read_text().splitlines())
        assert [line for line in block.splitlines() if line and line not in lines] == []


def test_the_example_depends_on_what_is_tested() -> None:
    example, tested = (json.loads((folder / "package.json").read_text()) for folder in (EXAMPLE, PACKAGES))
    assert example["dependencies"].pop("baton-stream")
    for kind in ("dependencies", "devDependencies"):
        assert example[kind] == tested[kind]
