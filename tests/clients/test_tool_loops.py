"""Stock tool loops: they run the client's tools, and leave those alone that the generator ran."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Literal

import agents
import pytest
from bench.packages import INSTALL_SECONDS
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from tests.clients.node import Node
from tests.support.cluster import Cluster

from baton.generators import GenerationRequest
from baton.generators.conversation import messages
from baton.generators.protocol import Yielded

Api = Literal["chat", "responses"]
APIS: list[Api] = ["chat", "responses"]
ANSWER = "It is 3 degrees in Oslo."
CALL = {"type": "tool_call", "index": 0, "id": "c1", "name": "weather", "arguments_delta": '{"city":"Oslo"}'}


async def own(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """A generator that runs the tool by itself."""
    yield "Let me look."
    yield CALL
    yield {"type": "tool_result", "id": "c1", "result": {"high": 3}}
    yield ANSWER


async def silent(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """One that ends with the result."""
    yield CALL
    yield {"type": "tool_result", "id": "c1", "result": {"high": 3}}
    yield {"type": "finish", "finish_reason": "tool_calls"}


async def asking(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """One whose tool the user must allow."""
    yield ANSWER
    yield CALL
    yield {"type": "tool_approval", "id": "c1"}


async def for_the_client(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """One that has the client run the tool."""
    if any(message["role"] == "tool" and message["tool_call_id"] == "c1" for message in messages(request.input)):
        yield ANSWER
        return
    yield CALL
    yield {"type": "finish", "finish_reason": "tool_calls"}


def weather(city: str) -> str:
    """Tell the weather."""
    assert city == "Oslo"
    RUNS.append(city)
    return "3 degrees"


RUNS: list[str] = []
GENERATORS = {"own": own, "silent": silent, "asking": asking, "client": for_the_client}
REQUESTS = {"own": 1, "silent": 1, "asking": 1, "client": 2}


@pytest.fixture
async def client(cluster: Cluster) -> AsyncGenerator[AsyncOpenAI, None]:
    pod = await cluster.pod()
    await cluster.worker(GENERATORS)
    RUNS.clear()
    async with AsyncOpenAI(base_url=f"{pod.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("name", GENERATORS)
async def test_openai_agents_run_only_the_clients_tools(
    cluster: Cluster, client: AsyncOpenAI, name: str, api: Api, streamed: bool
) -> None:
    model = (
        agents.OpenAIChatCompletionsModel(model=name, openai_client=client)
        if api == "chat"
        else agents.OpenAIResponsesModel(model=name, openai_client=client)
    )
    agent = agents.Agent(name="a", model=model, tools=[agents.function_tool(weather)])
    config = agents.RunConfig(tracing_disabled=True)
    if streamed:
        stream = agents.Runner.run_streamed(agent, "How cold is it?", run_config=config)
        async for _ in stream.stream_events():
            pass
        output: Any = stream.final_output
    else:
        output = (await agents.Runner.run(agent, "How cold is it?", run_config=config)).final_output
    await judge(cluster, name, output)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("name", ["own", "asking", "client"])
async def test_pydantic_ai_runs_only_the_clients_tools(
    cluster: Cluster, client: AsyncOpenAI, name: str, api: Api, streamed: bool
) -> None:
    provider = OpenAIProvider(openai_client=client)
    model = OpenAIChatModel(name, provider=provider) if api == "chat" else OpenAIResponsesModel(name, provider=provider)
    agent = Agent(model, tools=[weather])
    if streamed:
        async with agent.run_stream("How cold is it?") as result:
            output = await result.get_output()
    else:
        output = (await agent.run("How cold is it?")).output
    await judge(cluster, name, output)


@pytest.mark.timeout(INSTALL_SECONDS + 60)
@pytest.mark.parametrize("streamed", ["false", "true"])
async def test_run_tools_runs_only_the_clients_tools(
    cluster: Cluster, client: AsyncOpenAI, node: Node, streamed: str
) -> None:
    async with node.running("run_tools.mjs", str(client.base_url), streamed, *GENERATORS) as script:
        ran = await script.rest()
    assert [line["called"] for line in ran] == [["Oslo"] * (REQUESTS[name] - 1) for name in GENERATORS]
    count = "SELECT count(*) FROM baton.stream WHERE generator = $1"
    assert {name: await cluster.pool.fetchval(count, name) for name in GENERATORS} == REQUESTS
    assert [ANSWER in (line["content"] or "") for line in ran] == [name != "silent" for name in GENERATORS]


async def judge(cluster: Cluster, name: str, output: Any) -> None:
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == REQUESTS[name]
    assert ["Oslo"] * (REQUESTS[name] - 1) == RUNS
    if name != "silent":
        assert ANSWER in output
