"""The README's code: that what a person copies from it works."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from tests.cluster import Cluster
from tests.processes import finished

from baton.generators.registry import load_generators
from baton.settings import Settings

README = Path(__file__).parent.parent / "README.md"


def code_of(heading: str) -> str:
    """The first Python block below a heading."""
    section = README.read_text().split(f"## {heading}\n")[1]
    match = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert match is not None
    return match[1]


async def run_script(source: str) -> str:
    status, out, err = await finished("-c", source, env=os.environ, command=Path(sys.executable))
    assert status == 0, out + err
    return out + err


async def test_the_python_client_prints_the_answer(cluster: Cluster) -> None:
    pod = await cluster.pod()
    await cluster.worker(load_generators(cluster.settings(replay_speed=1000)))
    printed = await run_script(code_of("A Python client").replace("http://localhost:8001", pod.url))
    (stream,) = (await cluster.client.get(f"{pod.url}/v1/streams")).json()["data"]
    answer = (await cluster.client.get(f"{pod.url}/v1/streams/{stream['id']}")).json()
    assert answer["status"] == "completed"
    assert printed == answer["text"]


def sse(*frames: str) -> httpx2.Response:
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, text="".join(frames))


def frame(seq: int, kind: str) -> str:
    return f'id: {seq}\ndata: {{"type":"{kind}","seq":{seq}}}\n\n'


@pytest.mark.parametrize("url", ["/v1/streams/x/events", "http://pod/v1/streams/x/events"])
def test_the_python_client_pauses_before_it_comes_back_and_stops_at_the_end(url: str) -> None:
    answers: list[httpx2.Response | httpx2.TransportError] = [
        httpx2.Response(502),
        sse("retry: 20\n\n"),
        httpx2.Response(429),
        httpx2.ConnectError("refused"),
        sse("retry: 3600000\n\n", ": still here\n\n", frame(1, "text"), frame(2, "text")),
        sse(frame(3, "text"), frame(4, "done")),
    ]
    follow, paused = client_of_readme()
    with scripted(answers) as (client, asked):
        assert [event["seq"] for event in follow(client, url)] == [1, 2, 3, 4]
    assert asked == ["0", "0", "0", "0", "0", "2"]
    assert paused == [1, 0.02, 1, 1, 5]


def test_the_python_client_stops_when_everything_was_delivered_or_it_is_refused() -> None:
    follow, paused = client_of_readme()
    with scripted([sse(frame(1, "text")), httpx2.Response(204)]) as (client, asked):
        assert [event["seq"] for event in follow(client, "/events")] == [1]
    assert (asked, paused) == (["0", "1"], [1])
    with scripted([httpx2.Response(404)]) as (client, _), pytest.raises(httpx2.HTTPStatusError, match="404"):
        next(follow(client, "/events"))


def client_of_readme() -> tuple[Any, list[float]]:
    """The README's function, and the pauses that it makes, which are noted and not waited for."""
    paused: list[float] = []
    names: dict[str, Any] = {}
    exec(code_of("A Python client").partition("\nwith httpx2.Client")[0], names)
    names["time"] = SimpleNamespace(sleep=paused.append)
    return names["follow"], paused


@contextlib.contextmanager
def scripted(
    answers: list[httpx2.Response | httpx2.TransportError],
) -> Iterator[tuple[httpx2.Client, list[str]]]:
    """A client that is given these answers in turn, and the cursors that it asked with."""
    asked: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        assert request.url.host == "pod"
        asked.append(request.headers["last-event-id"])
        following = answers[len(asked) - 1]
        if isinstance(following, httpx2.TransportError):
            raise following
        return following

    with httpx2.Client(base_url="http://pod", transport=httpx2.MockTransport(answer)) as client:
        yield client, asked


def test_the_application_can_be_imported() -> None:
    names: dict[str, Any] = {}
    exec(code_of("In your own application"), names)
    assert names["app"].routes[0].app is names["baton_app"]


def test_the_generator_can_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_agent.py").write_text(code_of("Your own generator"))
    assert "agent" in load_generators(Settings.load(generators={"agent": "my_agent:generate"}))
    # Other tests load modules of this name.
    del sys.modules["my_agent"]
