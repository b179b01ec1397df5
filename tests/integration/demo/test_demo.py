"""`baton demo` as a person runs it: as a process, whose own processes and files must be gone afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx2
import psutil
import pytest
from tests.support.processes import processes_of

from baton.demo.cluster import Child, Cluster, Program
from baton.errors import DemoError
from baton.server.listening_socket import bind

SECONDS = 50
PROGRAMS = [Program("pod-a", 0), Program("pod-b", 0), Program("worker")]


class Running:
    """A demo in a session of its own, with a temporary folder of its own by which its processes are recognized."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.folder = folder
        self.output = ""
        self._reached = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "baton", "demo", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**clean_environment(), "TMPDIR": str(folder), **environment},
            cwd=folder,
            start_new_session=True,
            text=True,
            bufsize=0,
        )
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            while piece := os.read(stdout.fileno(), 65_536):
                with self._reached:
                    self.output += piece.decode()
                    self._reached.notify_all()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until the output holds this."""
        with self._reached:
            assert self._reached.wait_for(lambda: re.search(pattern, self.output), SECONDS), self.output
            found = re.search(pattern, self.output)
        assert found is not None
        return found

    def wait_for_child(self, name: str) -> None:
        deadline = time.monotonic() + SECONDS
        parent = psutil.Process(self.process.pid)
        while name not in names_of_children(parent):
            assert time.monotonic() < deadline, self.output
            time.sleep(0.005)

    def signal_until_it_ends(self, number: signal.Signals) -> None:
        """Signal the whole foreground group, as a terminal does for Ctrl-C, and again and again, as people do."""
        deadline = time.monotonic() + SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)

    def exit_status(self) -> int:
        status = self.process.wait(SECONDS)
        self._reading.join(SECONDS)
        return status

    def left_processes(self) -> list[str]:
        return processes_of(self.folder)

    def left_folders(self) -> list[Path]:
        return list(self.folder.glob("baton*"))

    def end(self) -> None:
        for pid in re.findall(r"pid (\d+)", self.output) if self.process.poll() is None else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reading.join(SECONDS)


def names_of_children(parent: psutil.Process) -> set[str]:
    names = set()
    for child in parent.children():
        with contextlib.suppress(psutil.Error):
            names.add(child.name())
    return names


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("BATON_")}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a Unix socket in it."""
    made = Path(tempfile.mkdtemp(prefix="bd-"))
    yield made
    shutil.rmtree(made)


@contextlib.contextmanager
def demo(folder: Path, *arguments: str, **environment: str) -> Iterator[Running]:
    running = Running(folder, *arguments, **environment)
    try:
        yield running
    finally:
        running.end()


def counted(output: str) -> Mapping[str, str]:
    """The lines of the verdict, by their label."""
    _, _, verdict = output.partition("What the client received")
    return dict(re.findall(r"^  ([a-z]+(?: [a-z]+)?)  +(.+)$", verdict, re.MULTILINE))


def test_the_answer_survives_its_pod_and_its_worker(folder: Path) -> None:
    # What a person has set for their own pods must not reach the demo's, nor what lies in `.env` there.
    foreign = {"BATON_POD_NAME": "mine", "BATON_ALLOW_ANONYMOUS": "false", "BATON_GENERATORS": "mine=nowhere:at_all"}
    with demo(folder, BATON_REPLAY_SPEED="4", **foreign) as running:
        assert running.exit_status() == 0, running.output
        rows = counted(running.output)
        received = re.fullmatch(r"(\d+), numbered 1 to (\d+)", rows["events"])
        resumed = re.fullmatch(r"after event (\d+), (pod-[ab]) -> (pod-[ab]), [\d.]+ s later", rows["resumed"])
        continued = re.fullmatch(
            r"after event (\d+), (worker-[ab]) -> (worker-[ab]), [\d.]+ s later", rows["continued"]
        )
        assert received
        assert resumed
        assert continued
        assert received[1] == received[2]
        assert rows["missing"] == rows["repeated"] == rows["resets"] == "0"
        assert re.match(rf"completed, event {received[1]}, ", rows["end"])
        assert resumed[2] != resumed[3]
        assert 150 < int(resumed[1]) < int(received[1])
        killed = running.wait_for(r"kill -9 (\d+): (pod-[ab]) is dead, after event (\d+)")
        assert killed[2] == resumed[2]
        assert killed[3] == resumed[1]
        assert f"{killed[2]}    pid {killed[1]}" in running.output
        assert int(resumed[1]) < int(continued[1]) < int(received[1])
        assert continued[2] != continued[3]
        assert re.search(rf"kill -9 \d+: {continued[2]} is dead, after event \d+\n", running.output)
        assert re.search(rf"{continued[3]} continues after event {continued[1]}, [\d.]+ s later\n", running.output)
        assert "The answer outlived its pod and its worker: 0 tokens lost, 0 repeated, no reset.\n" in running.output
        assert f"{resumed[3]} continues after Last-Event-ID: {resumed[1]}" in running.output
        assert "\x1b" not in running.output
        assert "whole.\n" in running.output
        assert running.left_processes() == []
        assert running.left_folders() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("Starting an embedded Postgres", signal.SIGINT),
        ("Starting two pods", signal.SIGTERM),
        pytest.param("The runner and the message", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_demo_and_leaves_nothing(folder: Path, moment: str, number: signal.Signals) -> None:
    with demo(folder, BATON_REPLAY_SPEED="2") as running:
        running.wait_for(moment)
        if "Postgres" in moment:
            running.wait_for_child("initdb")
        if "runner" in moment:
            # One that does not hear that it is to leave.
            os.kill(int(running.wait_for(r"worker-a +pid (\d+)")[1]), signal.SIGSTOP)
        running.signal_until_it_ends(number)
        assert running.exit_status() == 128 + number, running.output
        assert "Traceback" not in running.output
        assert running.output.endswith("Stopped.\n")
        assert running.left_processes() == []
        assert running.left_folders() == []


@pytest.mark.slow
@pytest.mark.parametrize("lines", [4, 13], ids=["while it starts", "in the answer"])
def test_a_closed_output_ends_the_demo_and_leaves_nothing(folder: Path, lines: int) -> None:
    command = f"'{sys.executable}' -m baton demo | head -n {lines}"
    environment = clean_environment() | {"TMPDIR": str(folder)}
    process = subprocess.Popen(["bash", "-o", "pipefail", "-c", command], env=environment, stdout=subprocess.DEVNULL)
    assert process.wait(SECONDS) == 1
    assert list(folder.glob("baton*")) == []
    assert processes_of(folder) == []


def test_a_port_in_use_is_reported(folder: Path) -> None:
    # It does not listen: whatever does is found before.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with demo(folder, "--port", str(port)) as running:
            assert running.exit_status() == 2
            assert f"baton: Cannot listen on 127.0.0.1:{port}" in running.output
            assert running.left_processes() == []
            assert running.left_folders() == []


def test_a_port_shared_by_other_pods_is_reported(folder: Path) -> None:
    with bind("127.0.0.1", 0) as theirs:
        theirs.listen()
        port = theirs.getsockname()[1]
        with demo(folder, "--port", str(port)) as running:
            assert running.exit_status() == 2
            assert f"baton: Another process listens on 127.0.0.1:{port}" in running.output


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_serve_stays_up_and_its_suggested_commands_work(folder: Path, empty_dsn: str) -> None:
    with demo(folder, "--serve", BATON_DATABASE_URL=empty_dsn, BATON_REPLAY_SPEED="10") as running:
        running.wait_for("Ctrl-C ends it")
        assert "Using the database of BATON_DATABASE_URL: baton_empty_" in running.output
        assert "embedded" not in running.output
        create = running.wait_for(r"(?m)^ +(URL=.+)$")[1]
        follow = running.wait_for(r'(?m)^ +(curl -Ni "\$URL")$')[1]
        resume = running.wait_for(r"(?m)^ +(curl -Ni -H .+)$")[1]
        url, first = shell(f"{create}; echo $URL; {follow}").split("\n", 1)
        told = re.search(r"x-baton-pod: (pod-[ab])", first)
        assert told
        last = int(re.findall(r"(?m)^id: (\d+)$", first)[-1])
        assert ids(first) == list(range(1, last + 1))
        shell(running.wait_for(rf"(?m)^ +(kill -9 \d+) +# {told[1]}$")[1])
        running.wait_for(rf"{told[1]} \(pid \d+\) ended: killed by SIGKILL")
        running.wait_for(rf"{told[1]} restarted \(pid \d+\)")
        second = shell(f"URL={url}; {resume}")
        assert ids(second) == list(range(201, last + 1))
        assert re.search(r"x-baton-pod: pod-[ab]", second)
        for name in ("demo", "console"):
            page = running.wait_for(rf"(http://127\.0\.0\.1:\d+/{name})  ")[1]
            assert f"<title>Baton {name}</title>" in shell(f"curl -s {page}")
        os.killpg(running.process.pid, signal.SIGINT)
        assert running.exit_status() == 0, running.output
        assert running.left_processes() == []
        assert running.left_folders() == []


def shell(command: str) -> str:
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=SECONDS, check=True)
    return done.stdout.replace("\r", "")


def ids(response: str) -> list[int]:
    return [int(seq) for seq in re.findall(r"(?m)^id: (\d+)$", response)]


async def test_a_pod_that_dies_at_startup_is_reported_with_its_last_lines(tmp_path: Path, dsn: str) -> None:
    settings = {"BATON_DATABASE_URL": dsn, "BATON_ALLOW_ANONYMOUS": "true", "BATON_SSE_KEEP_ALIVE_SECONDS": "-1"}
    children: list[Child] = []

    async def start() -> None:
        async with Cluster.open(tmp_path, PROGRAMS, settings) as cluster, httpx2.AsyncClient(trust_env=False) as http:
            children.extend(cluster.children.values())
            await cluster.wait_until_ready(http)

    with pytest.raises(DemoError, match=r"(?s)has ended \(exit status 2\).*BATON_SSE_KEEP_ALIVE_SECONDS: ") as told:
        await start()
    assert str(tmp_path) in str(told.value)
    assert [child.ended.done() for child in children] == [True] * 3


async def test_the_child_processes_end_when_their_task_is_cancelled(tmp_path: Path, dsn: str) -> None:
    settings = {"BATON_DATABASE_URL": dsn, "BATON_ALLOW_ANONYMOUS": "true"}
    async with asyncio.timeout(SECONDS):
        running = Cluster.open(tmp_path, PROGRAMS, settings)
        cluster = await running.__aenter__()
        children = list(cluster.children.values())
        assert [child.ended.done() for child in children] == [False] * 3
        await running.__aexit__(asyncio.CancelledError, asyncio.CancelledError(), None)
    assert [child.ended.done() for child in children] == [True] * 3
