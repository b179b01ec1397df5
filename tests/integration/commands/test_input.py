"""`baton input`: what a terminal sends to a stream."""

from __future__ import annotations

import asyncio
import io
import json

import pytest
from tests.support.access import guarded_pod, make_key
from tests.support.cluster import Cluster, RunningPod

from baton.commands import input as sending
from baton.db import inputs
from baton.errors import ConfigurationError


async def send(stream: object, content: str, pod: RunningPod, credential: str | None = None, key: str = "") -> int:
    return await asyncio.to_thread(
        sending.run, str(stream), content, url=pod.url, credential=credential, key=key or None
    )


async def test_it_sends_json_and_prints_the_number(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, credential = await make_key(cluster, "input")
    pod = await guarded_pod(cluster)
    author = await cluster.author(tenant="acme")
    approval = {"type": "approval", "call_id": "c", "approved": True, "reason": None}
    assert await send(f"resp_{author.id.hex}", json.dumps(approval), pod, credential, "once") == 0
    assert await send(author.id, json.dumps(approval), pod, credential, "once") == 0
    monkeypatch.setattr("sys.stdin", io.StringIO('"go on"'))
    assert await send(author.id, "-", pod, credential) == 0
    assert capsys.readouterr().out == "1\n1\n2\n"
    assert [item.data for item in await inputs.read(cluster.pool, author.id, 0)] == [approval, "go on"]


async def test_a_refused_input_is_exit_code_1(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    pod = await cluster.pod()
    author = await cluster.author()
    await author.write(end=True)
    assert await send(author.id, "1", pod) == 1
    assert "is refused: 409 The stream has ended as completed" in capsys.readouterr().err
    await cluster.stop_pod(pod)
    assert await send(author.id, "1", pod) == 1
    assert "No pod answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stream", "content", "sentence"),
    [
        ("chat-1", "1", "is not the id of a stream"),
        ("019a5e2c-0000-7000-8000-000000000000", "go on", "is not JSON"),
        ("019a5e2c-0000-7000-8000-000000000000", "null", "null cannot be sent"),
    ],
)
def test_what_cannot_be_sent_is_reported(stream: str, content: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        sending.run(stream, content, url="http://127.0.0.1:1", credential=None, key=None)
