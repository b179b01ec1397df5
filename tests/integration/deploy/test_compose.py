"""The image and `compose.yaml`, as they are: streams through nginx that outlive their pods."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.support.databases import engine_answers
from tests.support.follower import Follower, following, numbers, parse
from tests.support.logbook import until

PROJECT = Path(__file__).parents[3]
IMAGE = "baton:test"  # it stays, so that the next build is quick
# With the indexes and proxies that a build may need, and the engine's address.
OUTSIDE = {
    name: value for name, value in os.environ.items() if not name.startswith(("BATON_", "OPENAI_", "ANTHROPIC_"))
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("compose")]


@dataclass(frozen=True, slots=True)
class Project:
    """A compose project of its own."""

    name: str
    composing: tuple[str, ...]

    def compose(self, *arguments: str) -> str:
        where = ("--project-name", self.name, "--file", str(PROJECT / "compose.yaml"))
        return run(*self.composing, *where, *arguments, BATON_IMAGE=IMAGE, BATON_HTTP_PORT="0", BATON_POSTGRES_PORT="0")

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "--quiet", service).split()

    @property
    def url(self) -> str:
        return f"http://{self.compose('port', 'nginx', '8080').strip()}"


def run(*command: str, **env: str) -> str:
    done = subprocess.run(command, env=OUTSIDE | env, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, (command, done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout + done.stderr if command[-1] == "logs" else done.stdout


def docker(*arguments: str) -> str:
    return run("docker", *arguments)


def composing() -> tuple[str, ...] | None:
    """The command: a plugin of today's docker, a program of its own before."""
    if not shutil.which("docker") or not engine_answers():
        return None
    if subprocess.run(["docker", "compose", "version"], env=OUTSIDE, capture_output=True, check=False).returncode == 0:
        return "docker", "compose"
    return ("docker-compose",) if shutil.which("docker-compose") else None


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    """Everything of compose.yaml without its profiles, up and ready."""
    command = composing()
    if command is None:
        pytest.skip("No container engine answers here, or there is no docker compose: compose.yaml was not tried.")
    docker("build", "--network=host", "--tag", IMAGE, str(PROJECT))
    project = Project(f"baton-test-{secrets.token_hex(4)}", command)
    try:
        project.compose("up", "--detach", "--no-build")
        asyncio.run(until_it_serves(project.url))
        yield project
    finally:
        project.compose("down", "--volumes", "--remove-orphans", "--timeout", "1")


async def until_it_serves(url: str) -> None:
    """nginx listens a moment after its container has started."""

    async def serves() -> bool:
        try:
            return (await asking.get(f"{url}/readyz")).status_code == 200
        except httpx2.TransportError:
            return False

    async with httpx2.AsyncClient(trust_env=False) as asking:
        await until(serves, within_seconds=20)


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as client:
        yield client


async def create(client: httpx2.AsyncClient, url: str, **given: Any) -> str:
    answer = await client.post(f"{url}/v1/streams", json={"input": given})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def container_of(follower: Follower) -> str:
    """A pod is called by its host and process, and the host by its container."""
    host, _, process = follower.response.headers["x-baton-pod"].rpartition("-")
    assert process == "1", "baton is the container's first process: it gets the signals"
    return str(host)


def state(container: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker("inspect", "--format", "{{json .State}}", container))
    return found


async def healthy(container: str) -> None:
    def is_healthy() -> bool:
        return bool(state(container)["Health"]["Status"] == "healthy")

    await until(is_healthy, within_seconds=60)


async def test_a_stream_continues_through_nginx_after_its_pod_is_killed(
    project: Project, client: httpx2.AsyncClient
) -> None:
    url = project.url
    stream = await create(client, url, transcript="outlive", speed=2)
    async with following(client, url, stream) as follower:
        await follower.events(40)
        killed = container_of(follower)
        await asyncio.to_thread(docker, "kill", killed)
        # What was on its way may still come; then the connection ends, and visibly not as a stream does.
        with pytest.raises(httpx2.TransportError):
            await follower.rest()
    before = follower.frames
    query = f"{url}/v1/streams/{stream}/events?token=do-not-log-me"
    async with client.stream("GET", query, headers={"last-event-id": str(len(before))}) as response:
        follower = Follower(response)
        assert container_of(follower) != killed
        after = await follower.rest()
    assert numbers(before + after) == list(range(1, len(before + after) + 1))
    assert parse(after[-1])["status"] == "completed"
    told = "".join(event["delta"] for event in map(parse, before + after) if event["type"] == "text")
    assert told == (await client.get(f"{url}/v1/streams/{stream}")).json()["text"]

    docker("start", killed)
    await healthy(killed)
    log = project.compose("logs")
    assert f"GET /v1/streams/{stream}/events HTTP" in log
    assert "do-not-log-me" not in log


async def test_a_stream_outlives_a_rolling_restart_of_all_pods(project: Project, client: httpx2.AsyncClient) -> None:
    url = project.url
    stream = await create(client, url, transcript="outlive", speed=0.1)
    frames: list[bytes] = []
    served: list[str] = []
    moved = asyncio.Event()

    async def follow() -> None:
        while not frames or parse(frames[-1])["type"] != "done":
            async with following(client, url, stream, len(frames)) as follower:
                served.append(container_of(follower))
                moved.set()
                frames.extend(await follower.rest())

    following_on = asyncio.create_task(follow())
    await moved.wait()
    for _ in range(2):
        moved.clear()
        leaving = served[-1]
        await asyncio.to_thread(docker, "restart", "--time", "10", leaving)
        await moved.wait()
        assert served[-1] != leaving
        await healthy(leaving)
    await client.post(f"{url}/v1/streams/{stream}/cancel")
    await asyncio.wait_for(following_on, 30)
    assert numbers(frames) == list(range(1, len(frames) + 1))
    assert set(project.containers("pod")) == {
        container for container in project.containers("pod") if any(map(container.startswith, served))
    }


async def test_both_pods_serve_and_no_process_is_root(project: Project, client: httpx2.AsyncClient) -> None:
    url = project.url
    answers = [await client.get(f"{url}/healthz") for _ in range(40)]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers["x-baton-pod"] for answer in answers}) == 2
    assert (await client.get(f"{url}/metrics")).status_code == 404
    for container in (*project.containers("pod"), *project.containers("worker")):
        assert docker("exec", container, "id", "-u").strip() == "65532"


async def test_pods_and_workers_get_the_signal_to_stop(project: Project, client: httpx2.AsyncClient) -> None:
    await create(client, project.url, transcript="outlive")
    stopped = [*project.containers("pod"), *project.containers("worker")]
    project.compose("stop", "pod", "worker")
    assert [state(container)["ExitCode"] for container in stopped] == [0] * 4


def test_the_monitoring_profile_is_valid(project: Project) -> None:
    assert {"prometheus", "grafana"} <= set(project.compose("--profile", "monitoring", "config", "--services").split())
