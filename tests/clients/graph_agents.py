"""Agents and graphs of LangChain and LangGraph, for workers in this process, and for workers of their own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.config import get_stream_writer
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt

from baton.adapters import langgraph


def model(url: str) -> ChatOpenAI:
    """A model of OpenAI's, at a fake server."""
    return ChatOpenAI(model="test", base_url=f"{url}/v1", api_key="key", max_retries=0, stream_usage=True)


def recorded(record: Path) -> Any:
    """A tool that notes each call in a file."""

    @tool
    async def search(query: str) -> str:
        """Search for facts."""
        with record.open("a") as file:
            file.write(f"{query}\n")
        get_stream_writer()({"name": "progress", "data": {"query": query}})
        return f"facts about {query}"

    return search


def agent(url: str, record: Path, *middleware: Any) -> Any:
    """An agent that searches."""
    return create_agent(model(url), [recorded(record)], middleware=[*middleware, langgraph.Middleware()])


def asks_first(url: str, record: Path, **options: Any) -> Any:
    """An agent that searches only if people allow it."""
    return agent(url, record, HumanInTheLoopMiddleware(interrupt_on={"search": True}, **options))


def questions() -> Any:
    """A graph that asks people two questions, and answers with both replies."""

    def ask(state: MessagesState) -> dict[str, Any]:
        city, day = interrupt({"question": "Which city?"}), interrupt("Which day?")
        return {"messages": [{"role": "assistant", "content": f"{city} on {day}"}]}

    return StateGraph(MessagesState).add_node("ask", ask).add_edge(START, "ask").compile()


if "MODEL_URL" in os.environ:
    url, record = os.environ["MODEL_URL"], Path(os.environ["TOOL_RECORD"])
    searching = langgraph.generator(agent(url, record))
    asking_first = langgraph.generator(asks_first(url, record))
