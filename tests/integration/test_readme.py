"""The README's client, against a pod."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.support.cluster import Cluster
from tests.support.processes import finished
from tests.support.readme import code_of

from baton.generators.registry import load_generators


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
