"""`baton tail`: an answer in the terminal, whole, whatever becomes of its pods."""

from __future__ import annotations

import asyncio
import json

import pytest
from tests.support.cluster import Cluster, RunningPod

from baton.commands import tail
from baton.db import inputs
from baton.errors import ConfigurationError
from baton.events import encode_text
from baton.generators.registry import load_generators


async def tailed(stream: str, pod: RunningPod, *, cursor: int = 0, as_json: bool = False) -> int:
    return await asyncio.to_thread(tail.run, stream, url=pod.url, credential=None, cursor=cursor, as_json=as_json)


async def test_tail_prints_the_answer_and_how_it_ended(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    pod = await cluster.pod()
    author = await cluster.author()
    await author.write(b'{"type":"reasoning","delta":"Hm. "}', b'{"type":"text","delta":"Forty-two"}', end=True)
    assert await tailed(str(author.id), pod) == 0
    told = capsys.readouterr()
    assert told.out == "Hm. \n\nForty-two\n"
    assert told.err.startswith(f"· pod {pod.name}, from the start\n· completed (stop)")


async def test_json_output_is_one_line_for_each_event(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    pod = await cluster.pod()
    author = await cluster.author()
    await author.write(b'{"type":"text","delta":"one"}', b'{"type":"text","delta":"two\\u2028"}', end=True)
    for form in (str(author.id), author.id.hex, f"resp_{author.id.hex}", f"run_{author.id.hex}"):
        assert await tailed(form, pod, cursor=1, as_json=True) == 0
        told = capsys.readouterr()
        first, last = (json.loads(line) for line in told.out.split("\n")[:-1])
        assert first == {"seq": 2, "type": "text", "delta": "two\u2028"}
        assert (last["seq"], last["status"]) == (3, "completed")
        assert told.err == ""


async def test_tail_says_that_a_stream_waits_and_that_it_continues(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    pod = await cluster.pod()
    author = await cluster.author()
    await author.write(encode_text("May I?"))
    await author.wait({"type": "approval"})
    await inputs.add(cluster.pool, author.id, b'"yes"')
    await author.resume()
    await author.write(encode_text(" Done."), end=True)
    assert await tailed(str(author.id), pod) == 0
    told = capsys.readouterr()
    assert told.out == "May I?\n Done.\n"
    lines = told.err.splitlines()
    assert lines[1].startswith('· it waits for {"type":"approval"}, until 20')
    assert lines[2] == "· an input came, and the answer continues"


async def test_a_missing_or_failed_stream_is_exit_code_1(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    await cluster.worker(load_generators(cluster.settings()))
    pod = await cluster.pod()
    assert await tailed("019a5e2c-0000-7000-8000-000000000000", pod) == 1
    assert "is refused: 404 There is no stream" in capsys.readouterr().err
    failed = await cluster.create(pod, input={"transcript": "none"})
    assert await tailed(failed, pod) == 1
    assert "· failed (error), invalid_input: There is no transcript" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stream", "url", "sentence"),
    [
        ("chat-1", "http://127.0.0.1:1", "'chat-1' is not the id of a stream"),
        ("019a5e2c00007000800000000000000", "http://127.0.0.1:1", "is not the id of a stream"),
        ("019a5e2c-0000-7000-8000-000000000000", "127.0.0.1:8000", "is not the address of a pod"),
    ],
)
def test_an_invalid_request_is_reported(stream: str, url: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        tail.run(stream, url=url, credential=None, cursor=0, as_json=False)
