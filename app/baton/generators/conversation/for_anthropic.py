"""Makes the body of a request to Anthropic's Messages API."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from ...events import read_json
from .messages import chat_messages, kinds, shape
from .shapes import (
    Json,
    answer_format,
    broken,
    choice,
    function,
    inner,
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

_FOREIGN_KEYS = frozenset({"tool_calls", "function_call", "parts", "type", "refusal", "reasoning_content", "audio"})
_FOREIGN_PARTS = frozenset(
    {"image_url", "input_text", "input_image", "input_file", "output_text", "refusal", "file", "input_audio"}
)
_EFFORTS = frozenset({"low", "medium", "high", "xhigh", "max"})
_CHOICES = {"required": "any", "auto": "auto", "none": "none"}
_TIERS = {"auto": "auto", "default": "standard_only", "standard_only": "standard_only"}
_DATA_URL = re.compile(r"data:([\w.+/-]+);base64,(.*)", re.DOTALL)


@malformed_refused
def for_anthropic(given: Any) -> Json:
    """Return an input of any form as a body for the Messages API."""
    body = shape(given)
    if "messages" in body:
        _conversation(body)
    put(body, "max_tokens", take(body, "max_tokens", "max_completion_tokens", "max_output_tokens"))
    stop = take(body, "stop_sequences", "stop")
    put(body, "stop_sequences", [stop] if isinstance(stop, str) else stop)
    _answer(body)
    _tools(body)
    _account(body)
    refuse(body, audio=None, frequency_penalty=0, presence_penalty=0, logit_bias={}, logprobs=False, seed=None)
    refuse(body, function_call=None, functions=[], modalities=["text"], prediction=None, web_search_options=None)
    refuse(body, context_management=[], conversation=None, max_tool_calls=None)
    refuse_state(body)
    refuse(body, previous_response_id=None, prompt=None, truncation="disabled", top_logprobs=0)
    return body


def _conversation(body: Json) -> None:
    """Convert the messages. Instructions at the beginning go to `system`; later ones stay messages."""
    texts = [plain(body.pop("instructions", None), "instructions")]
    found: list[Json] = []
    for element in body["messages"]:
        native = [element] if _is_native(element) else chat_messages([element])
        for message in native if _is_native(element) else [item for one in native for item in _converted(one)]:
            if message["role"] == "system" and not found:
                texts.append(plain(message["content"], "instructions"))
            elif (kept := _signed(message))["content"] != []:
                _append(found, kept)
    body["messages"] = found
    if any(texts):
        own = body.get("system")
        blocks = [{"type": "text", "text": text} for text in texts if text]
        joined = "\n\n".join(text for text in [own, *texts] if text) if own is None or isinstance(own, str) else None
        body["system"] = joined or [*objects(own, "system"), *blocks]


def _append(found: list[Json], message: Json) -> None:
    """Add a message. Parallel calls of an assistant belong in one message, and so do their results."""
    last = found[-1] if found else None
    content = message.get("content")
    if last and last["role"] == message["role"] and isinstance(content, list) and isinstance(last["content"], list):
        mergeable = {"tool_use", "tool_result"}
        if (kinds(content) <= mergeable and kinds(last["content"]) & mergeable) or kinds(content) <= {"tool_use"}:
            found[-1] = {**last, "content": [*last["content"], *content]}
            return
    found.append(message)


def _signed(message: Json) -> Json:
    """Leave out thinking without a signature: another model's, which the API refuses."""
    content = message.get("content")
    if not isinstance(content, list) or "thinking" not in kinds(content):
        return message
    kept = [block for block in content if block.get("type") != "thinking" or block.get("signature")]
    return {**message, "content": kept}


def _is_native(element: Json) -> bool:
    content = element.get("content")
    if element.get("role") not in {"user", "assistant", "system"} or _FOREIGN_KEYS & element.keys():
        return False
    return isinstance(content, str) or (isinstance(content, list) and not kinds(content) & _FOREIGN_PARTS)


def _converted(message: Json) -> Iterator[Json]:
    role, content = message.get("role"), message.get("content")
    if role == "tool":
        output = content if isinstance(content, str | None) else _blocks(content)
        result = {"type": "tool_result", "tool_use_id": message.get("tool_call_id"), "content": output or ""}
        yield {"role": "user", "content": [result]}
    elif role in {"system", "developer"}:
        yield {"role": "system", "content": plain(content, "instructions")}
    elif role == "user":
        yield {"role": "user", "content": content if isinstance(content, str) else _blocks(content)}
    elif role == "assistant":
        for name in ("function_call", "audio"):
            if message.get(name) is not None:
                raise refusal(f"a message's {name!r}")
        content = content or message.get("refusal") or []
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else _blocks(content)
        blocks += [_tool_use(call) for call in objects(message.get("tool_calls") or [], "tool_calls")]
        if blocks:
            yield {"role": "assistant", "content": blocks}
    else:
        raise refusal(f"a message with the role {role!r:.80}")


def _tool_use(call: Json) -> Json:
    called = inner(call, "function")
    if not called:
        raise refusal(f"a tool call of the type {call.get('type')!r:.80}")
    try:
        arguments = read_json(called.get("arguments") or "{}")
    except orjson.JSONDecodeError:
        raise broken(f"The arguments of the tool call {call.get('id')!r:.80} are not JSON.") from None
    return {"type": "tool_use", "id": call.get("id"), "name": called.get("name"), "input": arguments}


def _blocks(content: Any) -> list[Json]:
    """Return parts as blocks, without empty texts, which the API refuses."""
    return [_block(part) for part in objects(content, "content") if part.get("text") != ""]


def _block(part: Json) -> Json:
    convert = _BLOCKS.get(str(part.get("type")))
    if convert is None:
        raise refusal(f"a part of the type {part.get('type')!r:.80}")
    return convert(part)


def _image(part: Json) -> Json:
    return {"type": "image", "source": _source(inner(part, "image_url").get("url"))}


def _file(part: Json) -> Json:
    file = inner(part, "file")
    if "file_id" in file:
        raise refusal("a file by its id")
    title = {"title": file["filename"]} if file.get("filename") else {}
    return {"type": "document", "source": _source(file.get("file_data") or file.get("file_url")), **title}


def _source(url: Any) -> Json:
    if match := _DATA_URL.fullmatch(str(url)):
        return {"type": "base64", "media_type": match[1], "data": match[2]}
    if isinstance(url, str) and url.startswith(("https://", "http://")):
        return {"type": "url", "url": url}
    raise refusal("an image or file that is neither a base64 data URL nor an http address")


_BLOCKS: dict[str, Callable[[Json], Json]] = {
    "text": lambda part: {"type": "text", "text": part.get("text", "")},
    "refusal": lambda part: {"type": "text", "text": part.get("refusal", "")},
    "image_url": _image,
    "file": _file,
}


def _answer(body: Json) -> None:
    text, reasoning, config = inner(body, "text"), inner(body, "reasoning"), inner(body, "output_config")
    if "format" not in config and (flat := answer_format(body, text)) and flat["type"] != "text":
        if flat["type"] != "json_schema":
            raise refusal(f"the answer's format {flat['type']!r:.80} without a schema")
        config["format"] = {"type": "json_schema", "schema": flat.get("schema", {})}
    effort = take(body, "reasoning_effort") or reasoning.get("effort")
    if effort and effort not in _EFFORTS:
        raise refusal(f"the reasoning effort {effort!r:.80}")
    config.setdefault("effort", effort)
    if (verbosity := take(body, "verbosity") or text.get("verbosity")) not in {None, "medium"}:
        raise refusal(f"the verbosity {verbosity!r:.80}")
    take(body, "text", "reasoning", "response_format")
    put(body, "output_config", {name: value for name, value in config.items() if value is not None})


def _tools(body: Json) -> None:
    if body.get("tools") is not None:
        body["tools"] = [_tool(tool) for tool in objects(body["tools"], "tools")]
    tool_choice, parallel = body.get("tool_choice"), take(body, "parallel_tool_calls")
    if tool_choice is not None and not is_anthropic_choice(tool_choice):
        mode, name = choice(tool_choice)
        body["tool_choice"] = {"type": "tool", "name": name} if mode == "tool" else {"type": _CHOICES.get(mode, mode)}
    if parallel is False and body.get("tools"):
        chosen = body.get("tool_choice") or {"type": "auto"}
        body["tool_choice"] = chosen if chosen["type"] == "none" else {**chosen, "disable_parallel_tool_use": True}


def _tool(tool: Json) -> Json:
    if is_anthropic_tool(tool):
        return tool
    found = function(tool)
    return {"input_schema": found.pop("parameters", None) or {"type": "object", "properties": {}}, **found}


def _account(body: Json) -> None:
    """Convert the fields about the user and storage. This API has only a user's id."""
    user = take(body, "safety_identifier", "user") or inner(body, "metadata").get("user_id")
    body.pop("metadata", None)
    put(body, "metadata", {"user_id": user} if user else None)
    take(body, "store", "stream_options", "include", "prompt_cache_key", "prompt_cache_retention")
    take(body, "prompt_cache_options")
    if (tier := take(body, "service_tier")) is not None:
        if tier not in _TIERS:
            raise refusal(f"the service tier {tier!r:.80}")
        body["service_tier"] = _TIERS[tier]
