"""What a person copies from docs/producers.md works."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest
from tests.clients.documentation import code_of, languages_of, printed_by
from tests.clients.durable_streams_node import SCRIPTS, scripts_in
from tests.clients.node import HERE, PRODUCERS, Node, documented
from tests.support.access import bearer, guarded_pod, make_key
from tests.support.cluster import Cluster
from tests.support.logbook import until
from tests.support.processes import BATON, environment, finished


@pytest.fixture
def streams_node(node: Node, tmp_path: Path) -> Node:
    """The scripts of the protocol's client. `node` is there for its check that node is."""
    return scripts_in(tmp_path)


def shell(heading: str) -> tuple[str, str, str]:
    """All commands below a heading, as one script, in which a command that fails ends it."""
    return "bash", "-ec", "".join(code_of(heading, "sh", PRODUCERS))


async def test_the_first_five_minutes_print_what_the_page_shows(cluster: Cluster) -> None:
    """The page shows each event right after its append, which the shell may print in another order."""
    pod = await cluster.pod()
    printed = await printed_by(*shell("The first five minutes"), url=pod.url)
    (shown,) = code_of("The first five minutes", "text", PRODUCERS)
    printed = re.sub(r',"timings":\{.*?\}', "", printed)
    assert sorted(filter(None, printed.splitlines())) == sorted(filter(None, shown.splitlines()))


async def test_a_held_request_shows_the_cancel(cluster: Cluster) -> None:
    pod = await cluster.pod()
    printed = await printed_by(*shell("How a producer learns that it is to stop"), url=pod.url)
    assert f"prints `{printed}`" in PRODUCERS.read_text()


async def test_a_stream_at_a_path_is_written_and_read(cluster: Cluster) -> None:
    pod = await cluster.pod()
    printed = await printed_by(*shell("Streams at a path"), url=pod.url)
    assert printed == "compiling … done"
    assert f"prints `{printed}`" in PRODUCERS.read_text()


async def test_a_key_of_the_page_writes_by_the_page_in_python(cluster: Cluster) -> None:
    (command,) = code_of("Tokens and scopes", "sh", PRODUCERS)
    env = environment(BATON_DATABASE_URL=cluster.dsn)
    env["PATH"] = f"{BATON.parent}{os.pathsep}{env['PATH']}"
    _, key, _ = await finished("-ec", command, env=env, command=Path("/bin/sh"))
    pod = await guarded_pod(cluster)
    (source,) = code_of("Python", "python", PRODUCERS)
    await printed_by(sys.executable, "-c", source, url=pod.url, BATON_KEY=key.strip())
    (stream,) = (await cluster.client.get(f"{pod.url}/v1/streams", headers=bearer(key.strip()))).json()["data"]
    assert await answer(cluster, pod.url, stream["id"], key.strip()) == "Hello from Python."


async def test_the_protocols_producer_writes_by_the_page(cluster: Cluster, streams_node: Node) -> None:
    _, key = await make_key(cluster, "create", "produce", "read")
    pod = await guarded_pod(cluster)
    async with streams_node.running("documented.mjs", key, url=pod.url) as script:
        (written,) = await script.rest()
    assert await answer(cluster, pod.url, written["id"], key) == "Hello from Node."


async def test_the_protocols_producer_learns_of_a_cancel(cluster: Cluster, streams_node: Node) -> None:
    _, key = await make_key(cluster)
    pod = await guarded_pod(cluster)
    async with streams_node.running("documented.mjs", key, "cancel", url=pod.url) as script:
        await script.says("writing")
        (stream,) = (await cluster.client.get(f"{pod.url}/v1/streams", headers=bearer(key))).json()["data"]
        url = f"{pod.url}/v1/streams/{stream['id']}"

        async def has_begun() -> bool:
            return bool((await cluster.client.get(url, headers=bearer(key))).json()["last_event_id"])

        await until(has_begun)
        (await cluster.client.post(f"{url}/cancel", headers=bearer(key))).raise_for_status()
        failed = (await script.rest())[-1]
    assert failed == {"event": "failed", "message": "The stream has ended (cancelled), so nothing can be appended."}


async def test_the_protocols_producer_alone_repeats_nothing_after_a_cancel(
    cluster: Cluster, streams_node: Node
) -> None:
    pod = await cluster.pod()
    async with streams_node.running("cancelled.mjs", pod.url) as script:
        (refused,) = await asyncio.wait_for(script.rest(), 20)
    assert refused == {"event": "refused", "name": "SequenceGapError", "requests": 3}


def test_all_code_of_the_page_is_run() -> None:
    """Except what is in Go, as the page says."""
    scripts = "".join(script.read_text() for folder in (HERE, SCRIPTS) for script in folder.glob("*.mjs"))
    assert documented(PRODUCERS).keys() <= set(re.findall(r'from "\./(\S+)"', scripts))
    assert languages_of(PRODUCERS) == {"sh": 6, "text": 1, "js": 2, "python": 1, "go": 1}


async def answer(cluster: Cluster, url: str, stream_id: str, key: str) -> str:
    found = (await cluster.client.get(f"{url}/v1/streams/{stream_id}", headers=bearer(key))).json()
    assert found["status"] == "completed"
    return str(found["text"])
