"""Makes the body of a request to the Responses API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .langchain import is_langchain, plain_message
from .messages import chat_messages, is_own_run, kinds, shape
from .shapes import (
    Json,
    answer_format,
    anthropic_parallel,
    choice,
    function,
    inner,
    is_agui_tool,
    is_anthropic_choice,
    is_anthropic_tool,
    malformed_refused,
    objects,
    plain,
    put,
    refusal,
    refuse,
    refuse_state,
    take,
)

_ROLES = frozenset({"user", "assistant", "system", "developer"})
_PARTS = frozenset({"input_text", "input_image", "input_file", "output_text", "refusal"})
_FOREIGN = frozenset({"tool_calls", "function_call", "parts", "name", "refusal", "audio", "reasoning_content"})


@malformed_refused
def for_responses(given: Any) -> Json:
    """Return an input of any form as a body for the Responses API."""
    body = shape(given)
    if "messages" in body:
        body["input"] = [item for element in body.pop("messages") for item in _items(element)]
    instructions = [text for name in ("system", "instructions") if (text := plain(body.pop(name, None), name))]
    put(body, "instructions", "\n\n".join(instructions) or None)
    put(body, "max_output_tokens", take(body, "max_output_tokens", "max_completion_tokens", "max_tokens"))
    _answer(body)
    _tools(body)
    options = inner(body, "stream_options")
    body.pop("stream_options", None)
    put(body, "stream_options", {name: options[name] for name in ("include_obfuscation",) if name in options})
    take(body, "cache_control", "betas")
    refuse(body, audio=None, frequency_penalty=0, presence_penalty=0, logit_bias={}, logprobs=False, seed=None)
    refuse(body, function_call=None, functions=[], modalities=["text"], prediction=None, web_search_options=None)
    refuse(body, stop=[], stop_sequences=[])
    refuse_state(body)
    return body


def _answer(body: Json) -> None:
    text, reasoning, config = inner(body, "text"), inner(body, "reasoning"), inner(body, "output_config")
    put(text, "format", answer_format(body, text))
    put(text, "verbosity", take(body, "verbosity") or text.get("verbosity"))
    put(reasoning, "effort", take(body, "reasoning_effort") or reasoning.get("effort") or config.get("effort"))
    take(body, "output_config")
    put(body, "text", text)
    put(body, "reasoning", reasoning)


def _tools(body: Json) -> None:
    anthropic_parallel(body)
    if body.get("tools") is not None:
        body["tools"] = [_tool(tool) for tool in objects(body["tools"], "tools")]
    tool_choice = body.get("tool_choice")
    if is_anthropic_choice(tool_choice) or (isinstance(tool_choice, dict) and "function" in tool_choice):
        mode, name = choice(tool_choice)
        body["tool_choice"] = {"type": "function", "name": name} if mode == "tool" else mode
    elif isinstance(tool_choice, dict) and ("allowed_tools" in tool_choice or "custom" in tool_choice):
        raise refusal("this tool_choice")


def _tool(tool: Json) -> Json:
    if isinstance(tool.get("function"), dict) or is_anthropic_tool(tool) or is_agui_tool(tool):
        # Only in this API is strict the default.
        return {"type": "function", "parameters": {}, "strict": False, **function(tool)}
    if isinstance(tool.get("custom"), dict):
        raise refusal("a custom tool in the form of Chat Completions")
    return tool


def _items(element: Json) -> Iterator[Json]:
    if _is_item(element):
        yield element
        return
    for message in chat_messages([element]):
        yield from _converted(message)


def _is_item(element: Json) -> bool:
    if is_langchain(plain_message(element)):
        return False
    if isinstance(element.get("type"), str) and element["type"] != "message":
        return not is_own_run(element)
    content = element.get("content")
    if element.get("role") not in _ROLES or _FOREIGN & element.keys():
        return False
    return isinstance(content, str) or (isinstance(content, list) and kinds(content) <= _PARTS)


def _converted(message: Json) -> Iterator[Json]:
    role, content = message.get("role"), message.get("content")
    if role == "tool":
        output = content if isinstance(content, str) else [_part(part) for part in objects(content, "content")]
        yield {"type": "function_call_output", "call_id": message.get("tool_call_id"), "output": output}
        return
    if role not in _ROLES:
        raise refusal(f"a message with the role {role!r:.80}")
    for name in ("name", "function_call", "audio"):
        if message.get(name) is not None:
            raise refusal(f"a message's {name!r}")
    if role == "assistant":
        yield from _assistant(message)
    else:
        parts = content if isinstance(content, str) else [_part(part) for part in objects(content, "content")]
        yield {"role": role, "content": parts}


def _assistant(message: Json) -> Iterator[Json]:
    content = message.get("content") or message.get("refusal") or ""
    if not isinstance(content, str):
        content = "".join(_assistant_text(part) for part in objects(content, "content"))
    if content:
        yield {"role": "assistant", "content": content}
    for call in objects(message.get("tool_calls") or [], "tool_calls"):
        called = inner(call, "function")
        if not called:
            raise refusal(f"a tool call of the type {call.get('type')!r:.80}")
        names = {"name": called.get("name"), "arguments": called.get("arguments") or "{}"}
        yield {"type": "function_call", "call_id": call.get("id"), **names}


def _assistant_text(part: Json) -> str:
    text = part.get("text") or part.get("refusal")
    if text is None and part.get("type") not in {"text", "refusal"}:
        raise refusal(f"a part of the type {part.get('type')!r:.80} in an assistant's message")
    return text or ""


def _part(part: Json) -> Json:
    convert = _CONVERTED.get(str(part.get("type")))
    if convert is None:
        raise refusal(f"a part of the type {part.get('type')!r:.80}")
    return convert(part)


def _image(part: Json) -> Json:
    image = inner(part, "image_url")
    return {"type": "input_image", "image_url": image.get("url"), "detail": image.get("detail") or "auto"}


_CONVERTED: dict[str, Callable[[Json], Json]] = {
    "text": lambda part: {"type": "input_text", "text": part.get("text", "")},
    "image_url": _image,
    "file": lambda part: {"type": "input_file", **inner(part, "file")},
}
