"""Several processes of one command: what is left when one of them, or their parent, dies, hangs, or cannot start."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import re
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from tests.faults.worker_processes import QUICK
from tests.support.cluster import Author, Cluster, text
from tests.support.follower import Follower, following, frames_after, parse, texts
from tests.support.logbook import DEADLINE_SECONDS, until
from tests.support.processes import SERVES, Running, environment, finished, running

CHILDREN = 2
COMMANDS = ("serve", "worker")
SAMPLE = re.compile(r'^(\w+)\{(?:[^}]*,)?process="(\d+)"[^}]*\} (\S+)$', re.MULTILINE)


def variables(dsn: str, **settings: Any) -> dict[str, str]:
    given = {"database_url": dsn, "allow_anonymous": "true", "processes": str(CHILDREN)} | settings
    return environment(**{f"BATON_{name.upper()}": str(value) for name, value in given.items()})


@contextlib.asynccontextmanager
async def several(dsn: str, command: str = "serve", **settings: Any) -> AsyncIterator[Running]:
    """Run a command in two processes, once both are ready."""
    given = {"pod_name": "pod", "worker_name": "worker", "port": "0"} | settings
    async with running(command, env=variables(dsn, **given), cwd=Path(__file__).parent) as parent:
        await parent.said(rf"All {CHILDREN} processes are ready")
        yield parent
    assert not any("Traceback" in line or "never awaited" in line for line in parent.lines), parent.lines


def children(parent: Running) -> list[psutil.Process]:
    """Its children, in the order of their start."""
    found: list[psutil.Process] = psutil.Process(parent.process.pid).children()
    return sorted(found, key=lambda child: child.pid)


async def child(parent: Running, number: int) -> psutil.Process:
    """The process of a child that is ready."""
    return psutil.Process(int((await parent.said(rf"Process {number} \(pid (\d+)\) is ready"))[1]))


def times(parent: Running, pattern: str) -> int:
    return sum(bool(re.search(pattern, line)) for line in parent.lines)


async def viewers_on_each(
    cluster: Cluster, url: str, author: Author, stack: contextlib.AsyncExitStack
) -> dict[str, list[Follower]]:
    """Follow a stream until there are two viewers on each child, by the name of its pod."""
    found: dict[str, list[Follower]] = {}
    while len(found) < CHILDREN or min(map(len, found.values())) < 2:
        follower = await stack.enter_async_context(following(cluster.client, url, author.id))
        await follower.next_event()
        found.setdefault(follower.response.headers["x-baton-pod"], []).append(follower)
    return found


async def test_a_killed_process_is_replaced_and_its_viewers_lose_nothing(cluster: Cluster) -> None:
    author = await cluster.author()
    await author.write(text(0))
    async with several(cluster.dsn) as parent, contextlib.AsyncExitStack() as stack:
        url = (await parent.said(SERVES))[2]
        viewers = await viewers_on_each(cluster, url, author, stack)

        async def view(follower: Follower) -> list[bytes]:
            """Read to the end of the stream, and reconnect as often as the connection is lost."""
            with contextlib.suppress(Exception):
                await follower.rest()
            seen = follower.frames
            while b'"type":"done"' not in seen[-1]:
                with contextlib.suppress(Exception):
                    seen = seen + await frames_after(cluster.client, url, author.id, len(seen))
            return seen

        viewing = [asyncio.create_task(view(follower)) for on_pod in viewers.values() for follower in on_pod]
        killed = await child(parent, 0)
        killed.kill()
        for _ in range(10):
            await author.write_texts([3])
        # The other one serves without a break.
        staying = viewers["pod-1"][0]
        await until(lambda: len(staying.frames) == len(author.lines))
        await parent.said(rf"Process 0 \(pid {killed.pid}\) has ended \(killed by SIGKILL\), and is replaced")
        await until(lambda: times(parent, r"Process 0 \(pid \d+\) is ready") == 2)
        again = await viewers_on_each(cluster, url, author, stack)
        assert set(again) == {"pod-0", "pod-1"}
        await author.write(text(1), end=True)
        for frames in await asyncio.wait_for(asyncio.gather(*viewing), DEADLINE_SECONDS):
            assert frames == author.frames
        replaced = {number: value for name, number, value in await samples(cluster, url) if "replacements" in name}
        assert replaced == {"0": "1.0", "1": "0.0"}


async def samples(cluster: Cluster, url: str) -> list[tuple[str, str, str]]:
    return SAMPLE.findall((await cluster.client.get(f"{url}/metrics")).text)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
async def test_a_signal_drains_all_processes_at_the_same_time(cluster: Cluster, number: signal.Signals) -> None:
    author = await cluster.author()
    await author.write(text(0))
    async with several(cluster.dsn, drain_seconds=0.5) as parent, contextlib.AsyncExitStack() as stack:
        url = (await parent.said(SERVES))[2]
        viewers = await viewers_on_each(cluster, url, author, stack)
        # A service manager signals all processes of a command at once. That is no second signal.
        for process in [*children(parent), psutil.Process(parent.process.pid)]:
            process.send_signal(number)
        for followers in viewers.values():
            for follower in followers:
                assert len(await follower.rest()) == 1
                assert follower.comments[-1].startswith(b": baton\nretry: ")
        assert await parent.ends(10) == 0
        assert times(parent, "Cancel|did not leave") == 0


@pytest.mark.slow
async def test_a_second_signal_ends_all_processes_at_once(cluster: Cluster) -> None:
    author = await cluster.author()
    await author.write(text(0))
    async with several(cluster.dsn, drain_seconds=60) as parent, contextlib.AsyncExitStack() as stack:
        url = (await parent.said(SERVES))[2]
        viewers = await viewers_on_each(cluster, url, author, stack)
        parent.signal(signal.SIGTERM)
        waiting: list[asyncio.Task[bytes]] = []
        # When a client of each has been sent away, all drain. The others would wait for a minute.
        for followers in viewers.values():
            rests = [asyncio.create_task(follower.next_block()) for follower in followers]
            await asyncio.wait(rests, return_when=asyncio.FIRST_COMPLETED)
            waiting.extend(rests)
        assert parent.process.returncode is None
        parent.signal(signal.SIGTERM)
        assert await parent.ends(15) == 0
        await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.slow
async def test_a_process_that_is_asked_to_leave_drains_and_is_replaced(cluster: Cluster) -> None:
    author = await cluster.author()
    await author.write(text(0))
    async with several(cluster.dsn, drain_seconds=0.2) as parent, contextlib.AsyncExitStack() as stack:
        url = (await parent.said(SERVES))[2]
        viewers = await viewers_on_each(cluster, url, author, stack)
        (await child(parent, 1)).terminate()
        for follower in viewers["pod-1"]:
            await follower.rest()
            assert follower.comments[-1].startswith(b": baton\nretry: ")
        await parent.said(r"Process 1 \(pid \d+\) has left, and is replaced")
        await until(lambda: times(parent, r"Process 1 \(pid \d+\) is ready") == 2)


@pytest.mark.parametrize("command", ["serve", pytest.param("worker", marks=pytest.mark.slow)])
async def test_a_signal_during_the_start_ends_all_without_an_error(cluster: Cluster, command: str) -> None:
    """At several moments: before the interpreters run, while they import, and while they connect."""
    moments = (0.0, 0.3, 0.6)
    async with contextlib.AsyncExitStack() as stack:
        env = variables(cluster.dsn, port="0")
        parents = [await stack.enter_async_context(running(command, env=env)) for _ in moments]

        async def interrupt(parent: Running, after_seconds: float) -> int:
            await until(lambda: len(children(parent)) == CHILDREN)
            await asyncio.sleep(after_seconds)
            parent.signal(signal.SIGTERM)
            return await parent.ends(20)

        codes = await asyncio.gather(*map(interrupt, parents, moments))
        assert codes == [0] * len(moments)
        for parent in parents:
            assert not any(re.search("Traceback|ERROR|CRITICAL", line) for line in parent.lines), parent.lines


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
async def test_a_signal_while_the_database_does_not_answer_ends_all(command: str) -> None:
    asked: asyncio.Semaphore = asyncio.Semaphore(0)

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.release()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as silent:
        dsn = f"postgresql://baton@127.0.0.1:{silent.sockets[0].getsockname()[1]}/baton"
        async with running(command, env=variables(dsn, port="0")) as parent:
            for _ in range(CHILDREN):
                await asyncio.wait_for(asked.acquire(), DEADLINE_SECONDS)
            parent.signal(signal.SIGTERM)
            assert await parent.ends(5) == 0
        assert parent.lines == []


@pytest.mark.slow
async def test_no_child_outlives_a_parent_that_is_killed(cluster: Cluster) -> None:
    author = await cluster.author()
    await author.write(text(0))
    async with several(cluster.dsn, drain_seconds=0.2) as parent, contextlib.AsyncExitStack() as stack:
        url = (await parent.said(SERVES))[2]
        viewers = await viewers_on_each(cluster, url, author, stack)
        orphans = children(parent)
        assert len(orphans) == CHILDREN
        parent.signal(signal.SIGKILL)
        await parent.ends()
        for followers in viewers.values():
            for follower in followers:
                await follower.rest()
                assert follower.comments[-1].startswith(b": baton\nretry: ")
        await until(lambda: not any(orphan.is_running() for orphan in orphans))


@pytest.mark.slow
async def test_an_orphan_whose_event_loop_is_blocked_ends_too(cluster: Cluster, tmp_path: Path) -> None:
    pod = await cluster.pod(generators={"blocking": "answers:blocking"})
    settings = {"generators": "blocking=answers:blocking", "drain_seconds": 0, "worker_drain_seconds": 0}
    async with several(cluster.dsn, "worker", **settings | QUICK) as parent:
        given = {"begin": str(tmp_path), "end": str(tmp_path / "never")}
        await cluster.create(pod, generator="blocking", input=given)
        await parent.said("event loop has been blocked")
        orphans = children(parent)
        parent.signal(signal.SIGKILL)
        await until(lambda: not any(orphan.is_running() for orphan in orphans))


@pytest.mark.slow
async def test_what_keeps_processes_from_starting_is_reported_once(empty_dsn: str) -> None:
    ends = await asyncio.gather(*(finished(command, env=variables(empty_dsn, port="0")) for command in COMMANDS))
    assert ends == [(2, "", "baton: The database has no Baton tables yet. Run `baton migrate` first.\n")] * 2


@pytest.mark.slow
async def test_a_port_in_use_is_reported_once(cluster: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, _, err = await finished("serve", env=variables(cluster.dsn, port=port))
    assert code == 2
    assert re.fullmatch(rf"baton: Cannot listen on 127\.0\.0\.1:{port}: .+ in use\.\n", err)


@pytest.mark.slow
async def test_a_process_that_crashes_in_its_start_ends_the_command(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "crashing.py").write_text("import os\nos._exit(3)\n")
    env = variables(cluster.dsn, generators="mine=crashing:f")
    async with running("worker", env=env, cwd=tmp_path) as parent:
        assert await parent.ends() == 1
    assert times(parent, r"has ended during its start \(exit status 3\), so the command ends") >= 1


@pytest.mark.slow
async def test_any_process_returns_the_metrics_of_all_but_one_that_hangs(cluster: Cluster) -> None:
    async with several(cluster.dsn, with_worker="true", http_keep_alive_seconds=60) as parent:
        address = urlsplit((await parent.said(SERVES))[2]).netloc

        def ask(connection: http.client.HTTPConnection, path: str) -> tuple[str | None, str]:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.headers["x-baton-pod"], answer.read().decode()

        with contextlib.ExitStack() as stack:
            while True:
                connection = http.client.HTTPConnection(address, timeout=DEADLINE_SECONDS)
                stack.callback(connection.close)
                if (await asyncio.to_thread(ask, connection, "/healthz"))[0] == "pod-0":
                    break
            _, metrics = await asyncio.to_thread(ask, connection, "/metrics")
            for name in ("baton_process_up", "baton_subscribers", "baton_worker_concurrency"):
                assert [number for sample, number, _ in SAMPLE.findall(metrics) if sample == name] == ["0", "1"], name
            families = re.findall(r"^# HELP (\w+) ", metrics, re.MULTILINE)
            assert len(families) == len(set(families))
            hanging = await child(parent, 1)
            hanging.suspend()
            _, metrics = await asyncio.to_thread(ask, connection, "/metrics")
            found = {(name, number): value for name, number, value in SAMPLE.findall(metrics)}
            assert found["baton_process_up", "0"] == "1.0"
            assert found["baton_process_up", "1"] == "0.0"
            assert ("baton_subscribers", "1") not in found
            hanging.resume()


@pytest.mark.slow
async def test_a_process_that_hangs_for_long_is_replaced(cluster: Cluster) -> None:
    async with several(cluster.dsn) as parent:
        (await child(parent, 1)).suspend()
        await parent.said(r"Process 1 \(pid \d+\) hangs, and is killed")
        await until(lambda: times(parent, r"Process 1 \(pid \d+\) is ready") == 2)


async def test_a_killed_worker_process_is_replaced_and_all_metrics_are_served(cluster: Cluster) -> None:
    pod = await cluster.pod(generators={"counting": "answers:counting"})
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {"generators": "counting=answers:counting", "worker_metrics_port": port, "worker_concurrency": 2}
    async with several(cluster.dsn, "worker", **settings | QUICK) as parent:
        streams = [
            await cluster.create(pod, generator="counting", input={"count": 40, "pause": 0.02}) for _ in range(4)
        ]

        async def running_by_process() -> list[str]:
            found = await samples(cluster, f"http://127.0.0.1:{port}")
            return [value for name, _, value in found if name == "baton_worker_streams"]

        # Two streams each: the limit holds for each process.
        await until(lambda: _equal(running_by_process(), ["2.0", "2.0"]))
        (await child(parent, 0)).kill()
        answers = [await frames_after(cluster.client, pod.url, stream) for stream in streams]
        for frames in answers:
            kinds = [parse(frame)["type"] for frame in frames]
            last = len(kinds) - kinds[::-1].index("reset") if "reset" in kinds else 0
            assert "".join(texts(frames[last:])) == "".join(f"{number} " for number in range(40))
        await until(lambda: times(parent, r"Process 0 \(pid \d+\) is ready") == 2)
        parent.signal(signal.SIGTERM)
        assert await parent.ends(10) == 0
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.worker") == 0


async def _equal(found: Any, expected: list[str]) -> bool:
    return bool(await found == expected)
