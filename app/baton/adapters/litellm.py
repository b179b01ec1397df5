"""Asks any of LiteLLM's models: `generate = generator("anthropic/claude-sonnet-5")`.

The model may call the tools that the client sent; the client runs them. LiteLLM cannot continue an answer that a lost
worker has begun, so it restarts after a `reset`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final

from ..generators import GenerationRequest, Yielded
from ..generators.conversation import for_chat
from ..generators.protocol import refuse_approvals
from .extras import extra

# Without it the import asks GitHub for a list of prices, and waits for the answer.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

with extra("litellm", "litellm"):
    import litellm
    from litellm.exceptions import MidStreamFallbackError

    from ..generators.chat_answer import ChatAnswer

# What a client may set. LiteLLM takes addresses, keys and prices among the same parameters.
_OF_CLIENTS: Final = frozenset(
    {
        "frequency_penalty",
        "logit_bias",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "modalities",
        "parallel_tool_calls",
        "presence_penalty",
        "reasoning_effort",
        "response_format",
        "seed",
        "stop",
        "temperature",
        "thinking",
        "tool_choice",
        "tools",
        "top_p",
        "verbosity",
        "web_search_options",
    }
)


def generator(model: str, **options: Any) -> Callable[[GenerationRequest], AsyncGenerator[Yielded, None]]:
    """Return a generator that asks a model through `litellm.acompletion`.

    `options` go to that call, such as `api_base`, `api_key`, `fallbacks` or `timeout`, and win over what the client
    sent. Of a client's request only the usual parameters of a chat completion are passed on.
    """

    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        refuse_approvals(f"litellm {model}", request)
        body = {name: value for name, value in for_chat(request.input).items() if name in _OF_CLIENTS}
        usage = {"include_usage": True}
        chunks = await litellm.acompletion(
            **{**body, **options, "model": model, "stream": True, "stream_options": usage}
        )
        answer = ChatAnswer()
        async with contextlib.aclosing(chunks):
            try:
                async for chunk in chunks:
                    for event in answer.translate(chunk):
                        yield event
            except MidStreamFallbackError as error:
                raise error.original_exception or error from error
        if answer.usage is not None:
            yield answer.usage
        yield {"type": "finish", "finish_reason": answer.finish_reason or "stop"}

    return generate
