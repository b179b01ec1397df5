"""Converts a conversation of any form into messages of Chat Completions.

Here the content of a `tool` message may also hold images and files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import orjson

from .agui import context_text, from_agui, is_agui
from .langchain import from_langchain, is_langchain, plain_message
from .older_pages import from_older, is_older
from .shapes import Json, broken, inner, json_text, malformed_refused, objects, plain, refusal

# The name of the MCP server that appears to run the generators' tools, in the form of Responses.
SERVER_LABEL = "baton"
CHAT_PARTS = frozenset({"text", "image_url", "input_audio", "file", "refusal"})

# The texts that replace missing results of an AI SDK's tool calls, by the state of the call.
_UNANSWERED = {
    "input-streaming": "this call was broken off.",
    "input-available": "this call has no result.",
    "approval-requested": "the user has neither allowed nor refused this call.",
    "approval-responded": "the user allowed this call, but it has no result.",
}

# The types of parts with the model's reasoning.
_THOUGHTS = frozenset({"thinking", "redacted_thinking", "reasoning", "reasoning_text"})
_HINTS = frozenset({"cache_control", "citations"})
_OF_ITEMS = frozenset({"type", "id", "status", "phase", "content"})


@malformed_refused
def messages(given: Any, *, allowed: Set[str] = frozenset()) -> list[Json]:
    """Return a stream's input as chat messages, `{"role", "content", …}`, whatever form the client used.

    `content` is a text or a list of parts, `{"type": "text", "text"}`, `{"type": "image_url", "image_url": {"url"}}` or
    `{"type": "file", "file"}`. A text is one user message; instructions are a first message with the role `system`.
    The tool calls whose ids are `allowed` will run now, so they have no result yet.

    Raises:
        GenerationError: it is not a conversation, or has content that messages cannot express.
    """
    body = shape(given)
    found = chat_messages(body.get("messages", []), allowed)
    for message in found:
        _require_complete(message)
    return [*leading(body), *found]


def shape(given: Any) -> Json:
    """Return an input as an object. Its `messages`, if any, are a list of objects of any form but that of AG-UI.

    The context of AG-UI becomes instructions.
    """
    if isinstance(given, str | list):
        given = {"messages": given}
    if not isinstance(given, Mapping):
        raise broken("The input must be a text, a list of messages, or an object with messages.")
    body = dict(given)
    if body.get("messages") is None:
        body.pop("messages", None)
        if body.get("input") is not None:
            body["messages"] = body["input"]
    elif body.get("input") is not None:
        raise broken('The input has both "messages" and "input". Send one of them.')
    body.pop("input", None)
    if isinstance(body.get("messages"), str):
        body["messages"] = [{"role": "user", "content": body["messages"]}]
    if "messages" in body:
        body["messages"] = [found for element in objects(body["messages"], "messages") for found in _renamed(element)]
    if text := context_text(body.get("context")):
        body["instructions"] = "\n\n".join(filter(None, (plain(body.get("instructions"), "instructions"), text)))
    if text is not None:
        del body["context"]
    return body


def _renamed(element: Json) -> Iterator[Json]:
    """Yield a message of a page's protocol as a chat message, or as a message of a newer page; others as they are."""
    if is_older(element):
        yield from_older(element)
    elif is_agui(element):
        yield from from_agui(element)
    else:
        yield element


def _require_complete(message: Json) -> None:
    """Refuse a message without what every reader needs.

    Raises:
        GenerationError: it has no role, or a tool call or its result has no id, or no name.
    """
    if not isinstance(message.get("role"), str):
        raise broken('A message has no role. Give each one a "role", such as "user" or "assistant".')
    if message["role"] == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise broken('A message of the role "tool" has no "tool_call_id".')
    for call in objects(message.get("tool_calls") or [], "tool_calls"):
        tool = call.get("function") or call.get("custom")
        if not isinstance(call.get("id"), str) or not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
            raise broken('A tool call has no "id", or no function with a "name".')


def leading(body: Mapping[str, Any]) -> list[Json]:
    """Return the instructions that are outside of the messages, as messages."""
    texts = [plain(body.get(name), name) for name in ("system", "instructions")]
    return [{"role": "system", "content": text} for text in texts if text]


def chat_messages(elements: list[Json], allowed: Set[str] = frozenset()) -> list[Json]:
    """Return messages and items of any form as chat messages. Parallel calls become one message."""
    found: list[Json] = []
    for element in elements:
        for message in _chat(plain_message(element), allowed):
            if element.get("type") == "function_call" and found and found[-1].get("role") == "assistant":
                calls = [*(found[-1].get("tool_calls") or []), *message["tool_calls"]]
                found[-1] = {**found[-1], "tool_calls": calls}
            else:
                found.append(message)
    return found


def is_chat(element: Json) -> bool:
    """Whether a message needs no conversion."""
    content = element.get("content")
    if "type" in element or isinstance(element.get("parts"), list) or is_langchain(element):
        return False
    return not isinstance(content, list) or kinds(content) <= CHAT_PARTS


def is_own_run(element: Json) -> bool:
    """Whether an item is a tool call that a generator ran. No provider knows its server."""
    return element.get("type") == "mcp_call" and element.get("server_label") == SERVER_LABEL


def kinds(content: list[Any]) -> set[Any]:
    """Return the types of a message's parts."""
    return {part.get("type") for part in objects(content, "content")}


def _chat(element: Json, allowed: Set[str]) -> Iterator[Json]:
    kind = element.get("type")
    if is_chat(element):
        yield _without_hints(element)
    elif isinstance(element.get("parts"), list):
        yield from _ui_message(element, allowed)
    elif is_langchain(element):
        yield from_langchain(element)
    elif kind == "function_call":
        call = _call(element.get("call_id"), element.get("name"), element.get("arguments"))
        yield {"role": "assistant", "content": None, "tool_calls": [call]}
    elif kind == "function_call_output":
        yield _result(element.get("call_id"), element.get("output"))
    elif is_own_run(element):
        yield {"role": "assistant", "content": None, "tool_calls": [_own_call(element)]}
        yield _result(element.get("id"), element.get("output") or "Error: this call has no result.")
    elif "role" in element and kind in {None, "message"}:
        yield from _message(element)
    elif kind != "reasoning":
        raise refusal(f"an item of the type {kind!r:.80}")


def _without_hints(element: Json) -> Json:
    """Leave out the fields that texts have only in Anthropic's form: they change no answer, and servers refuse them."""
    content = element.get("content")
    if not isinstance(content, list) or not any(_HINTS & part.keys() for part in content):
        return element
    kept = [{name: value for name, value in part.items() if name not in _HINTS} for part in content]
    return {**element, "content": kept}


def _message(element: Json) -> Iterator[Json]:
    """Split content with parts of other forms: chat messages have tool calls and results outside the content."""
    content, parts = element.get("content"), []
    calls = list(element.get("tool_calls") or [])
    kept = {name: value for name, value in element.items() if name not in _OF_ITEMS}
    if not isinstance(content, list):
        yield {**kept, "content": content}
        return
    for part in objects(content, "content"):
        kind = part.get("type")
        if kind == "tool_result":
            yield _result(part.get("tool_use_id"), part.get("content"), failed=bool(part.get("is_error")))
        elif kind == "tool_use":
            calls.append(_call(part.get("id"), part.get("name"), part.get("input")))
        elif kind not in _THOUGHTS:
            parts.append(_part(part))
    if parts or calls:
        yield {
            **kept,
            "content": _joined(parts, whole=kept.get("role") == "assistant"),
            **({"tool_calls": calls} if calls else {}),
        }


def _joined(parts: list[Json], *, whole: bool = False) -> Any:
    """Return a single text as a string, which more servers accept. If texts form a `whole`, join them."""
    texts = [part["text"] for part in parts if part["type"] == "text"]
    if len(texts) == len(parts) and (whole or len(parts) <= 1):
        return "".join(texts) or None
    return parts


def _part(part: Json) -> Json:
    kind = part.get("type")
    if kind in CHAT_PARTS and kind != "refusal":
        return part
    convert = _PARTS.get(str(kind))
    if convert is None:
        raise refusal(f"a part of the type {kind!r:.80}")
    return convert(part)


def _text(part: Json) -> Json:
    return {"type": "text", "text": part.get("text") or part.get("refusal") or ""}


def _input_image(part: Json) -> Json:
    if not isinstance(part.get("image_url"), str):
        raise refusal("an image without an address or data")
    detail = {"detail": part["detail"]} if part.get("detail") else {}
    return {"type": "image_url", "image_url": {"url": part["image_url"], **detail}}


def _input_file(part: Json) -> Json:
    names = ("file_data", "file_id", "filename", "file_url")
    return {"type": "file", "file": {name: part[name] for name in names if part.get(name)}}


def _image(part: Json) -> Json:
    return {"type": "image_url", "image_url": {"url": _source_url(part)}}


def _document(part: Json) -> Json:
    source = inner(part, "source")
    if source.get("type") == "text":
        return {"type": "text", "text": source.get("data", "")}
    name = "file_url" if source.get("type") == "url" else "file_data"
    return {"type": "file", "file": {name: _source_url(part), "filename": part.get("title") or "document.pdf"}}


def _source_url(part: Json) -> str:
    source = inner(part, "source")
    if source.get("type") == "base64":
        return f"data:{source.get('media_type')};base64,{source.get('data')}"
    if source.get("type") == "url" and isinstance(source.get("url"), str):
        return str(source["url"])
    raise refusal(f"a source of the type {source.get('type')!r:.80}")


_PARTS: dict[str, Callable[[Json], Json]] = {
    "input_text": _text,
    "output_text": _text,
    "refusal": _text,
    "input_image": _input_image,
    "input_file": _input_file,
    "image": _image,
    "document": _document,
}


def _own_call(element: Json) -> Json:
    return _call(element.get("id"), element.get("name"), element.get("arguments"))


def _call(call_id: Any, name: Any, arguments: Any) -> Json:
    function = {"name": name, "arguments": json_text({} if arguments is None else arguments)}
    return {"id": call_id, "type": "function", "function": function}


def _result(call_id: Any, output: Any, *, failed: bool = False) -> Json:
    """Return a tool's result. A failure becomes words: only Anthropic has a flag for it."""
    content = output if isinstance(output, str) else ""
    parts = [_part(part) for part in objects(output, "tool results")] if isinstance(output, list) else None
    if failed:
        content = f"Error: {content}"
        parts = parts and [{"type": "text", "text": "Error:"}, *parts]
    return {"role": "tool", "tool_call_id": call_id, "content": _joined(parts) if parts else content}


def _ui_message(element: Json, allowed: Set[str]) -> Iterator[Json]:
    """Split an AI SDK's message into its steps: each was a request to the model."""
    role = element.get("role")
    step: list[Json] = []
    for part in objects(element["parts"], "parts"):
        if part.get("type") in {"step-start", "steering-message"}:
            yield from _ui_step(role, step, allowed)
            step = []
            if part["type"] == "steering-message":
                # A message of the user during the answer.
                yield from _ui_step("user", list(objects(part.get("parts"), "parts")), allowed)
        else:
            step.append(part)
    yield from _ui_step(role, step, allowed)


def _ui_step(role: Any, step: list[Json], allowed: Set[str]) -> Iterator[Json]:
    """Yield the text and the calls of one step, and then the results, wherever they are among the parts."""
    parts: list[Json] = []
    calls: list[Json] = []
    results: list[Json] = []
    for part in step:
        kind = str(part.get("type"))
        if kind == "dynamic-tool" or kind.startswith("tool-"):
            call_id = _ui_field(part, "toolCallId")
            calls.append(_call(call_id, _ui_tool(part), _ui_arguments(part)))
            if call_id not in allowed:
                results.append(_result(call_id, _ui_outcome(part)))
        elif kind not in _THOUGHTS and not kind.startswith(("data-", "source-")):
            parts.append(_ui_part(part))
    content = _joined(parts, whole=role != "user")
    if content or calls:
        yield {"role": role, "content": content, **({"tool_calls": calls} if calls else {})}
    yield from results


def _ui_outcome(part: Json) -> str:
    """Return the result of a call. A missing one is replaced: providers refuse a call without a result."""
    state = part.get("state")
    if state == "output-available":
        return json_text(part.get("output"))
    if state == "output-error":
        return f"Error: {_ui_field(part, 'errorText')}"
    approval = inner(part, "approval")
    if state == "output-denied" or (state == "approval-responded" and approval.get("approved") is not True):
        reason = approval.get("reason")
        return f"Error: the user did not allow this call{f': {reason}' if reason else '.'}"
    if state not in _UNANSWERED:
        raise refusal(f"a tool call in the state {state!r:.80}")
    return f"Error: {_UNANSWERED[state]}"


def _ui_tool(part: Json) -> str:
    return _ui_field(part, "toolName") if part["type"] == "dynamic-tool" else str(part["type"]).removeprefix("tool-")


def _ui_arguments(part: Json) -> str:
    """Return a call's arguments as JSON. Invalid arguments of a failed call are returned unchanged."""
    value = part.get("input")
    if part.get("state") == "output-error":
        value = part.get("rawInput") if value is None else value
        if isinstance(value, str):
            return value
    return orjson.dumps({} if value is None else value).decode()


def _ui_part(part: Json) -> Json:
    if part.get("type") == "text":
        return {"type": "text", "text": _ui_field(part, "text")}
    if part.get("type") != "file":
        raise refusal(f"a part of the type {part.get('type')!r:.80}")
    url = _ui_field(part, "url")
    if _ui_field(part, "mediaType").startswith("image/"):
        return {"type": "image_url", "image_url": {"url": url}}
    name = "file_data" if url.startswith("data:") else "file_url"
    return {"type": "file", "file": {name: url, "filename": part.get("filename") or "file"}}


def _ui_field(part: Json, name: str) -> str:
    value = part.get(name)
    if not isinstance(value, str):
        raise broken(f"The input is malformed: a part of the type {part.get('type')!r:.80} needs {name!r}, a string.")
    return value
