"""The agents of the tests, as a user writes them. Workers that are processes of their own import this module.

Their models are at `PROVIDER_URL`. `search` and `delete` write each call, with its idempotency key, to the file `calls`
in `FOLDER`; `search` waits while there is a file `hold`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import agents
import openai
import pydantic_ai as framework
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

import baton
from baton.adapters import openai_agents, pydantic_ai
from baton.generators import Generator

agents.set_tracing_disabled(True)

clients: list[openai.AsyncOpenAI] = []  # to close


class Tools:
    """The tools of one agent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def search(self, query: str) -> str:
        """Search for something."""
        self._note("search", query)
        while (self.folder / "hold").exists():  # noqa: ASYNC110 - another process removes it
            await asyncio.sleep(0.01)
        return f"All about {query}."

    async def delete(self, name: str) -> str:
        """Delete a file."""
        self._note("delete", name)
        return f"Deleted {name}."

    def _note(self, *called: str) -> None:
        with (self.folder / "calls").open("a") as calls:
            calls.write(f"{' '.join(called)} {baton.idempotency_key()}\n")


def _client(url: str) -> openai.AsyncOpenAI:
    clients.append(openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0))
    return clients[-1]


def agents_sdk(url: str, folder: Path) -> Generator:
    """An agent of the OpenAI Agents SDK."""
    tools = Tools(folder)
    client = _client(url)
    agent = agents.Agent(
        "researcher",
        model=agents.OpenAIResponsesModel("test", openai_client=client),
        tools=[agents.function_tool(tools.search), agents.function_tool(tools.delete, needs_approval=True)],
    )
    return openai_agents.generator(agent)


def pydantic(url: str, folder: Path) -> Generator:
    """An agent of Pydantic AI."""
    tools = Tools(folder)
    client = _client(url)
    agent = framework.Agent(
        OpenAIResponsesModel("test", provider=OpenAIProvider(openai_client=client)),
        tools=[framework.Tool(tools.search), framework.Tool(tools.delete, requires_approval=True)],
    )
    return pydantic_ai.generator(agent)


FRAMEWORKS: Mapping[str, Callable[[str, Path], Generator]] = {"agents_sdk": agents_sdk, "pydantic": pydantic}

if "PROVIDER_URL" in os.environ:
    agents_sdk_generate = agents_sdk(os.environ["PROVIDER_URL"], Path(os.environ["FOLDER"]))
    pydantic_generate = pydantic(os.environ["PROVIDER_URL"], Path(os.environ["FOLDER"]))
