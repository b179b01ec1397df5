"""The npm package `baton-stream`: what is committed is built from its sources, it is packed well, and it works."""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from bench.packages import INSTALL_SECONDS, node
from tests.clients.balancer import balancer
from tests.clients.node import HERE, Node
from tests.clients.pods import ANSWER, WORDS, two_pods
from tests.support.access import bearer, guarded_pod, make_key
from tests.support.cluster import Cluster, Tap
from tests.support.follower import frames_after, texts
from tests.support.logbook import until
from tools.js_client import BROWSER, BUILDS, PACKAGE, TYPES, build, pack

import baton
from baton.api.browser_builds import NEWEST
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded

README = PACKAGE / "README.md"
STRICT = ("--strict", "--noEmit", "--skipLibCheck", "--target", "es2022", "--lib", "es2022,dom,dom.iterable")
# What each entry may add to a page, compressed. The README of the package states these, in the same words.
KILOBYTES = {".": 6, "./produce": 9, "./react": 7, "./ai-sdk": 9}

pytestmark = [pytest.mark.timeout(INSTALL_SECONDS + 120), pytest.mark.xdist_group("js-client")]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built."""
    folder = tmp_path_factory.mktemp("js-client")
    build(folder)
    for script in ("baton_stream.mjs", "baton_stream_produce.mjs", "baton_stream_steer.mjs", "say.mjs"):
        shutil.copy(HERE / script, folder)
    return folder


def run(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PATH": f"{node().parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [node(), *arguments], env=environment, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("committed", "built"), [(PACKAGE / TYPES, TYPES), (BUILDS / NEWEST, Path("dist") / BROWSER)])
def test_what_is_committed_is_built_from_the_sources(package: Path, committed: Path, built: Path) -> None:
    assert filecmp.cmp(committed, package / built, shallow=False), "Run: make js"


def test_the_browser_build_imports_nothing(package: Path) -> None:
    assert "import " not in (package / "dist" / BROWSER).read_text()


def test_each_entry_is_as_small_as_stated(package: Path) -> None:
    sizes = json.loads(run(package, "sizes.mjs"))
    assert sizes.keys() == KILOBYTES.keys()
    assert {name: size for name, size in sizes.items() if size >= KILOBYTES[name] * 1000} == {}
    row = re.compile(r"^\| `baton-stream(/?\S*)` \| .* \| under (\d+) KB \|$", re.MULTILINE)
    stated = dict(row.findall(README.read_text()))
    assert stated == {name.removeprefix("."): str(most) for name, most in KILOBYTES.items()}


def test_its_own_tests_pass(package: Path) -> None:
    tests = sorted(str(file.relative_to(package)) for file in package.glob("test/*.test.mjs"))
    out = run(package, "--test", "--test-timeout=60000", *tests)
    assert "fail 0" in out
    assert "skipped 0" in out


@pytest.mark.parametrize(
    "resolution", [("--module", "esnext", "--moduleResolution", "bundler"), ("--module", "nodenext")]
)
def test_its_types_say_what_they_should(package: Path, resolution: tuple[str, ...]) -> None:
    run(package, "node_modules/typescript/bin/tsc", *STRICT, *resolution, "test/use.ts", "test/use-ai-sdk.ts")


def test_it_is_packed_well(package: Path) -> None:
    pack(package, package)
    (packed,) = package.glob("baton-stream-*.tgz")
    run(package, "node_modules/publint/src/cli.js", "--strict", packed.name)
    run(package, "node_modules/@arethetypeswrong/cli/dist/index.js", "--profile", "node16", packed.name)
    with tarfile.open(packed) as archive:
        listed = archive.getnames()
    assert {"package/LICENSE", "package/README.md", "package/dist/esm/produce.d.ts"} <= set(listed)
    assert not [name for name in listed if "test" in name or "node_modules" in name]


async def test_it_follows_a_stream_past_a_killed_pod(cluster: Cluster, package: Path) -> None:
    async with two_pods(cluster) as pods, balancer(pods.first, pods.second) as url:
        created = await cluster.client.post(f"{url}/v1/streams", json={"generator": "tap", "input": None})
        async with Node(package).running("test/follow-pods.mjs", f"{url}{created.json()['events_url']}") as script:
            pods.say(*WORDS[:300])
            await script.says("half")
            await pods.kill()
            pods.say(*WORDS[300:])
            pods.finish()
            said = await script.rest()
    assert [item["lastEventId"] for item in said if item["event"] == "disconnected"]
    judge(said[-1])
    assert said[-1]["ids"] == list(range(1, len(WORDS) + 3))


async def test_the_documented_code_follows_an_answer(cluster: Cluster, package: Path) -> None:
    async with (
        two_pods(cluster) as pods,
        balancer(pods.first, pods.second) as url,
        Node(package).running("baton_stream.mjs", url=url) as script,
    ):
        pods.say(*WORDS[:300])
        await script.says("half")
        await pods.kill()
        pods.say(*WORDS[300:])
        pods.finish()
        whole = (await script.rest())[-1]
    assert whole == {"event": "whole", "text": ANSWER, "grew": len(WORDS)}


async def test_the_documented_code_produces_an_answer(cluster: Cluster, package: Path) -> None:
    _, key = await make_key(cluster, "create", "produce", "read")
    pod = await guarded_pod(cluster)
    async with Node(package).running("baton_stream_produce.mjs", key, url=pod.url) as script:
        written = (await script.rest())[-1]
    found = await cluster.client.get(f"{pod.url}/v1/streams/{written['id']}", headers=bearer(written["token"]))
    assert (written["status"], found.json()["text"]) == ("completed", "Hello from Node.")


@baton.continues
async def careful(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Wait for an approval."""
    yield {"type": "continue", "after": request.so_far.seq}
    if (answer := await request.receive(0)) is None:
        yield {"type": "wait", "for": {"type": "approval", "calls": ["call_1"]}}
        return
    yield f"{answer['call_id']} {answer['approved']}"


async def test_the_documented_code_answers_a_question_and_stops(cluster: Cluster, package: Path) -> None:
    pod, tap = await cluster.pod(), Tap()
    await cluster.worker({"careful": careful, "tap": tap})
    async with Node(package).running("baton_stream_steer.mjs", pod.url, url=pod.url) as script:
        over = await script.says("over")
    assert over["text"] == "call_1 True"

    async def is_cancelled() -> bool:
        found = await cluster.client.get(f"{pod.url}/v1/streams/{over['id']}")
        return bool(found.json()["status"] == "cancelled")

    await until(is_cancelled)


@pytest.mark.parametrize("mode", ["poll", "snapshot"])
async def test_it_follows_an_answer_that_has_begun(cluster: Cluster, package: Path, mode: str) -> None:
    async with two_pods(cluster) as pods:
        created = await cluster.client.post(f"{pods.first}/v1/streams", json={"generator": "tap", "input": None})
        pods.say(*WORDS[:300])
        url = f"{pods.first}{created.json()['events_url']}"
        async with Node(package).running("test/follow-pods.mjs", url, mode) as script:
            await script.says("half")
            pods.say(*WORDS[300:])
            pods.finish()
            judge((await script.rest())[-1])


async def test_it_produces_a_stream_past_a_killed_pod(cluster: Cluster, package: Path) -> None:
    async with two_pods(cluster) as pods, balancer(pods.first, pods.second) as url:
        async with Node(package).running("test/produce-pods.mjs", url) as script:
            created = await script.says("created")
            script.hears("300")
            await reaches(cluster, f"{pods.second}/v1/streams/{created['id']}", 300)
            script.hears("150")
            await pods.kill()
            script.hears(str(len(WORDS) - 450))
            script.closes()
            result = (await script.rest())[-1]["result"]
        frames = await frames_after(cluster.client, pods.second, created["id"])
    assert (result["status"], result["accepted"]) == ("completed", len(WORDS) + 1)
    assert list(texts(frames)) == WORDS


async def test_one_key_produces_and_the_streams_token_follows(cluster: Cluster, package: Path) -> None:
    _, key = await make_key(cluster, "create", "produce", "read")
    pod = await guarded_pod(cluster)
    async with Node(package).running("test/produce-pods.mjs", pod.url, key) as script:
        created = await script.says("created")
        script.hears(str(len(WORDS)))
        script.closes()
        assert (await script.rest())[-1]["result"]["status"] == "completed"
    url = f"{pod.url}{created['events_url']}"
    async with Node(package).running("test/follow-pods.mjs", url, "events", created["token"]) as viewer:
        assert (await viewer.rest())[-1]["text"] == ANSWER


async def test_a_cancelled_stream_stops_its_source(cluster: Cluster, package: Path) -> None:
    pod = await cluster.pod()
    async with Node(package).running("test/produce-pods.mjs", pod.url) as script:
        created = await script.says("created")
        script.hears("3")
        await reaches(cluster, f"{pod.url}/v1/streams/{created['id']}", 3)
        (await cluster.client.post(f"{pod.url}/v1/streams/{created['id']}/cancel")).raise_for_status()
        said = await script.rest()  # though its source says nothing more
    assert said[-2] == {"event": "stopped", "code": "cancelled"}
    assert (said[-1]["result"]["status"], said[-1]["result"]["accepted"]) == ("cancelled", 3)


async def reaches(cluster: Cluster, url: str, seq: int) -> None:
    async def has_reached() -> bool:
        return bool((await cluster.client.get(url)).json()["last_event_id"] >= seq)

    await until(has_reached)


async def test_a_refusal_has_its_code(cluster: Cluster, package: Path) -> None:
    pod = await cluster.pod()
    url = f"{pod.url}/v1/streams/019a5e2c-0000-7000-8000-00000000000a/events"
    async with Node(package).running("test/follow-pods.mjs", url) as script:
        (refused,) = await script.rest()
    expected = {"name": "BatonError", "code": "stream_not_found", "status": 404, "retryable": False}
    assert refused == {"event": "refused", **expected}


def judge(whole: dict[str, Any]) -> None:
    """The whole answer, and its end."""
    assert whole["text"] == ANSWER
    assert whole["done"]["status"] == "completed"
    assert whole["done"]["usage"]["output_tokens"] == len(WORDS)
