"""Adapters: each makes a generator of an agent that is written with another framework.

Each is an extra, and only programs of users import one: `openai_agents`, `pydantic_ai`, `langgraph` (LangChain, too)
and `litellm`. The other modules are their parts. A part of one adapter begins with its name. `agent_steps` has what
`openai_agents` and `pydantic_ai` share: how an agent survives its worker without checkpoints of its own.
"""
