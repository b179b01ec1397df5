"""docs/model-servers.md works as it stands: its settings, and its client, while a pod and a worker are killed."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from openai import AsyncOpenAI
from tests.clients.documentation import code_of, languages_of, printed_by
from tests.support.logbook import connected, until, until_tail
from tests.support.pacing import Pace
from tests.support.processes import SERVES, Running, environment, running
from tests.support.vllm_server import VllmServer

PAGE: Final = Path(__file__).parents[2] / "docs" / "model-servers.md"
WHOLE: Final = "".join(f"word{number} " for number in range(40)).strip()
HALF: Final = 20


def settings_for(server: VllmServer, dsn: str) -> dict[str, str]:
    """What the page exports, with this server's address in place of its own."""
    (shell,) = code_of("Set it up", "sh", PAGE)
    exported = dict(re.findall(r"^export (\w+)='?(.*?)'?$(?=\n(?:export|baton))", shell, re.MULTILINE | re.DOTALL))
    assert exported.keys() == {"BATON_OPENAI_API", "BATON_MODELS"}
    models = re.sub(r"http://(vllm|ollama):\d+", server.url.removesuffix("/v1"), exported["BATON_MODELS"])
    own = {"BATON_DATABASE_URL": dsn, "BATON_ALLOW_ANONYMOUS": "true", "BATON_PORT": "0", "BATON_LEASE_SECONDS": "2"}
    return environment(**exported | {"BATON_MODELS": models} | own)


@contextlib.asynccontextmanager
async def serving(env: dict[str, str]) -> AsyncIterator[tuple[Running, str]]:
    async with running("serve", env=env) as pod:
        yield pod, (await pod.said(SERVES))[2]


async def test_the_client_of_the_page_prints_the_answer(dsn: str) -> None:
    assert languages_of(PAGE) == {"sh": 1, "python": 1}
    async with VllmServer(WHOLE) as server:
        env = settings_for(server, dsn)
        async with serving(env) as (_pod, url), running("worker", env=env):
            (source,) = code_of("Use it", "python", PAGE)
            assert await printed_by(sys.executable, "-c", source, url=url) == f"queued\n{WHOLE}"


async def test_an_answer_of_vllm_outlives_its_pod_and_its_worker(dsn: str) -> None:
    async with VllmServer(WHOLE, pace=Pace(allowed=HALF)) as server:
        env = settings_for(server, dsn)
        async with serving(env) as (one, first), serving(env) as (_other, second), connected(dsn) as connection:
            async with running("worker", env=env) as lost:
                async with AsyncOpenAI(base_url=f"{first}/v1", api_key="none", max_retries=0) as client:
                    response = await client.responses.create(model="qwen", input="Hello", background=True)
                stream_id = await connection.fetchval("SELECT id FROM baton.stream")
                await until_tail(connection, stream_id, HALF)
                lost.signal(signal.SIGKILL)
                one.signal(signal.SIGKILL)
                await lost.ends()
            await until(lambda: server.aborted == 1)
            server.pace.release()
            async with running("worker", env=env), AsyncOpenAI(base_url=f"{second}/v1", api_key="none") as client:
                events = [event async for event in await client.responses.retrieve(response.id, stream=True)]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == WHOLE
    assert events[-1].type == "response.completed"
    assert [prefix is None for prefix in server.prefixes] == [True, False]
