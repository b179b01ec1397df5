"""Makes the body of a request to the Chat Completions API."""

from __future__ import annotations

from typing import Any

from .messages import chat_messages, leading, shape
from .shapes import (
    Json,
    answer_format,
    anthropic_parallel,
    choice,
    function,
    inner,
    is_anthropic_choice,
    malformed_refused,
    objects,
    put,
    refusal,
    refuse,
    refuse_state,
    take,
)


@malformed_refused
def for_chat(given: Any) -> Json:
    """Return an input of any form as a body for Chat Completions."""
    body = shape(given)
    if "messages" in body:
        body["messages"] = [*leading(body), *chat_messages(body["messages"])]
        for message in body["messages"]:
            _check(message)
    take(body, "system", "instructions", "include", "cache_control", "betas")
    put(body, "max_completion_tokens", take(body, "max_output_tokens"))
    put(body, "stop", take(body, "stop_sequences", "stop"))
    _answer(body)
    _tools(body)
    # OpenAI accepts metadata only with `store`.
    if not body.get("store"):
        body.pop("metadata", None)
    refuse(body, context_management=[], conversation=None, max_tool_calls=None)
    refuse_state(body)
    refuse(body, previous_response_id=None, prompt=None, truncation="disabled")
    return body


def _answer(body: Json) -> None:
    """Convert the answer's format and the reasoning effort. Some servers have a `reasoning` of their own."""
    text, config, reasoning = inner(body, "text"), inner(body, "output_config"), body.get("reasoning")
    if "response_format" not in body and (flat := answer_format(body, text)):
        kind = flat.pop("type")
        body["response_format"] = {"type": kind, "json_schema": flat} if flat else {"type": kind}
    put(body, "verbosity", take(body, "verbosity") or text.get("verbosity"))
    if isinstance(reasoning, dict) and reasoning.keys() <= {"effort", "summary", "generate_summary"}:
        config = {**config, **reasoning}
        del body["reasoning"]
    put(body, "reasoning_effort", take(body, "reasoning_effort") or config.get("effort"))
    take(body, "text", "output_config")


def _tools(body: Json) -> None:
    anthropic_parallel(body)
    if body.get("tools") is not None:
        body["tools"] = [_tool(tool) for tool in objects(body["tools"], "tools")]
    tool_choice = body.get("tool_choice")
    flat = isinstance(tool_choice, dict) and tool_choice.get("type") == "function" and "function" not in tool_choice
    if flat or is_anthropic_choice(tool_choice):
        mode, name = choice(tool_choice)
        body["tool_choice"] = {"type": "function", "function": {"name": name}} if mode == "tool" else mode


def _tool(tool: Json) -> Json:
    if isinstance(tool.get("function"), dict) or isinstance(tool.get("custom"), dict):
        return tool
    return {"type": "function", "function": function(tool)}


def _check(message: Json) -> None:
    """Refuse content that only the other APIs accept."""
    content = message.get("content")
    for part in content if isinstance(content, list) else []:
        if message.get("role") == "tool" and part.get("type") != "text":
            raise refusal("images or files in a tool's result")
        if "file_url" in inner(part, "file"):
            raise refusal("a file by its address")
