"""The doors of other protocols, in the ways in which a stream can stop: no client takes a cut answer for a whole."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
import orjson
import pytest
from tests.support.cluster import Author, Cluster, RunningPod
from tests.support.doors import DOORS, THREAD, Door
from tests.support.logbook import until

from baton.events import encode_object, encode_text
from baton.outcome import Outcome

# Lone surrogates, as half an emoji that a program has cut through, and characters that end a line somewhere.
ODD = "Ünï 漢\u2028\u2029\x85\r\n\n😀\ud83d"


@dataclass
class Follower:
    """A client of a door, on one connection."""

    door: Door
    body: bytes = b""
    began: asyncio.Event = field(default_factory=asyncio.Event)
    status: int = 0
    shows: str = ""

    async def follow(self, client: httpx2.AsyncClient, method: str, url: str, content: Any = None) -> None:
        clean = False
        with contextlib.suppress(httpx2.TransportError):
            async with client.stream(method, url, json=content) as response:
                self.status = response.status_code
                self.began.set()
                async for part in response.aiter_raw():
                    self.body += part
                clean = True
        self.shows = self.door.shows(self.body, clean=clean)


class Scene:
    """A stream that a test writes, followed through each door on one pod; Anthropic's has a stream of its own."""

    def __init__(
        self, cluster: Cluster, pod: RunningPod, authors: list[Author], followers: dict[str, Follower]
    ) -> None:
        self.cluster = cluster
        self.pod = pod
        self.authors = authors
        self.followers = followers

    async def write(self, *lines: bytes) -> None:
        for author in self.authors:
            await author.write(*lines)

    async def have(self, text: bytes) -> None:
        await until(lambda: all(text in one.body for name, one in self.followers.items() if name in STREAMED))

    def shown(self) -> dict[str, str]:
        return {name: one.shows for name, one in self.followers.items()}


STREAMED = DOORS.keys() - {"langgraph.result"}


@contextlib.asynccontextmanager
async def followed(cluster: Cluster, **settings: Any) -> AsyncIterator[Scene]:
    """Follow through all doors, and wait for the ends of the connections on leaving."""
    pod = await cluster.pod(**settings)
    followers = {name: Follower(door) for name, door in DOORS.items()}
    path, body = DOORS["anthropic"].creating()
    tasks = [
        asyncio.create_task(followers["anthropic"].follow(cluster.client, "POST", pod.url + path, body)),
    ]
    await followers["anthropic"].began.wait()
    own = Author(cluster.pool, await cluster.pool.fetchval("SELECT id FROM baton.stream"))
    await own.claim()
    author = await cluster.author(chat=THREAD)
    for name, follower in followers.items():
        if name != "anthropic":
            method, path = follower.door.following(author.id)
            tasks.append(asyncio.create_task(follower.follow(cluster.client, method, pod.url + path)))
    await until(lambda: pod.metric("baton_subscribers") == len(DOORS))
    async with asyncio.timeout(20):
        yield Scene(cluster, pod, [own, author], followers)
        await asyncio.gather(*tasks)


async def leave(scene: Scene) -> None:
    await scene.pod.pod.drain()


async def leave_behind_the_end(scene: Scene) -> None:
    """The stream ends, and the pod leaves before its clients have the end."""
    for author in scene.authors:
        await author.write(encode_text(" rest"), notify=False, end=True)
    await scene.pod.pod.drain()


async def erase(scene: Scene) -> None:
    for author in scene.authors:
        await scene.cluster.client.delete(f"{scene.pod.url}/v1/streams/{author.id}")


async def lose_an_event(scene: Scene) -> None:
    for author in scene.authors:
        author.lose(encode_text("lost"))
        await author.write(encode_text("later"))


async def rewind(scene: Scene) -> None:
    await end(scene, Outcome.failed("log_rewound", "The end of the answer was lost."))


async def cancel(scene: Scene) -> None:
    await end(scene, Outcome.cancelled())


async def end(scene: Scene, outcome: Outcome) -> None:
    for author in scene.authors:
        item = author._next([outcome.encode()], outcome)
        await author._append([item], notify=True)


CUT = dict.fromkeys(DOORS, "cut")
FAILED = dict.fromkeys(DOORS, "failed")


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (leave, CUT),
        (leave_behind_the_end, CUT),
        (erase, CUT),
        (lose_an_event, FAILED),
        (rewind, FAILED),
        # It has an outcome of its own.
        (cancel, FAILED | {"agui": "complete"}),
    ],
)
async def test_no_door_shows_a_cut_answer_as_a_whole_one(
    cluster: Cluster, stop: Callable[[Scene], Any], expected: dict[str, str]
) -> None:
    async with followed(cluster, log_poll_seconds=60) as scene:
        await scene.write(encode_text("Half"))
        await scene.have(b"Half")
        await stop(scene)
    assert scene.shown() == expected
    if stop is cancel:
        assert b'"outcome":{"type":"cancelled"}' in scene.followers["agui"].body
    if stop is erase:
        for name, door in DOORS.items():
            if name not in {"anthropic", "aisdk.v3", "aisdk.v4"}:
                method, path = door.following(scene.authors[1].id)
                answer = await cluster.client.request(method, scene.pod.url + path)
                assert answer.status_code == 404, (name, answer.text)


async def test_keep_alives_and_any_characters_are_no_part_of_an_answer(cluster: Cluster) -> None:
    async with followed(cluster, sse_keep_alive_seconds=0.05) as scene:
        before = {name: len(one.body) for name, one in scene.followers.items()}
        await until(lambda: all(len(one.body) > before[name] + 8 for name, one in scene.followers.items()))
        await scene.write(encode_text(ODD[:-1]), encode_text("\ud83d"))
        await scene.write(
            encode_object(
                {"type": "tool_call", "index": 0, "id": "c", "name": "f", "arguments_delta": '{"a":"\\ud83d"}'}
            )
        )
        for author in scene.authors:
            await author.write(end=True)
    assert scene.shown() == dict.fromkeys(DOORS, "complete")
    for name, one in scene.followers.items():
        found = said(name, one.body)
        assert found == ODD[:-1] + "\ufffd", name


def said(name: str, body: bytes) -> str:
    """The text of an answer, by the rules of the door's protocol."""
    if name == "langgraph.result":
        return str(orjson.loads(body)["messages"][-1]["content"])
    if name.startswith("aisdk"):
        return "".join(orjson.loads(line[2:]) for line in body.decode().split("\n") if line.startswith("0:"))
    events = [block.rpartition("data: ")[2] for block in body.decode().split("\n\n") if "data: " in block]
    return "".join(text_of(name, orjson.loads(event)) for event in events)


def text_of(name: str, event: Any) -> str:
    if name == "langgraph":
        return event[0]["content"] if isinstance(event, list) else ""
    if name == "anthropic":
        return event["delta"].get("text", "") if event["type"] == "content_block_delta" else ""
    return event["delta"] if event["type"] == "TEXT_MESSAGE_CONTENT" else ""


@pytest.mark.parametrize("name", DOORS)
async def test_http_1_0_is_refused_before_anything_is_created(cluster: Cluster, name: str) -> None:
    pod = await cluster.pod()
    path, body = DOORS[name].creating()
    where, port = pod.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(where, int(port))
    content = orjson.dumps(body)
    writer.write(b"POST %b HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (path.encode(), len(content), content))
    answer = await reader.read()
    writer.close()
    assert b"http_1_1_required" in answer
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 0
