"""The smallest shapes in a request: optional fields, texts, tools, formats, and errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import orjson

from ...errors import GenerationError

Json = dict[str, Any]
Given = ParamSpec("Given")
Result = TypeVar("Result")

_ANTHROPIC_TOOL = re.compile(r".*_\d{8}|mcp_toolset")
_ANTHROPIC_CHOICES = {"auto": "auto", "any": "required", "none": "none", "tool": "tool"}


def refusal(what: str) -> GenerationError:
    """Return the error for something that the target API cannot express."""
    return GenerationError(
        "invalid_input", f"The model's API does not accept {what}. Leave it out, or use another model."
    )


def broken(sentence: str) -> GenerationError:
    """Return the error for something of an unknown shape."""
    return GenerationError("invalid_input", sentence)


def malformed_refused(convert: Callable[Given, Result]) -> Callable[Given, Result]:
    """Turn errors of a conversion into one error for the client: any field at any depth can hold any JSON."""

    @wraps(convert)
    def converting(*given: Given.args, **options: Given.kwargs) -> Result:
        try:
            return convert(*given, **options)
        except (AttributeError, KeyError, TypeError) as error:
            raise broken("The input is malformed: a field is missing, or has a value that no API accepts.") from error

    return converting


def objects(given: Any, name: str) -> Iterator[Json]:
    """Yield the objects of a list.

    Raises:
        GenerationError: it is not a list of objects.
    """
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise broken(f"The input's {name} must be a list of objects.")
    yield from given


def inner(body: Mapping[str, Any], name: str) -> Json:
    """Return a copy of an object inside another; an empty one if there is none."""
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise broken(f"The input's {name!r} must be an object.")
    return dict(value or {})


def take(body: MutableMapping[str, Any], *names: str) -> Any:
    """Remove fields that mean the same, and return the first that is not null."""
    values = [body.pop(name, None) for name in names]
    return next((value for value in values if value is not None), None)


def put(body: MutableMapping[str, Any], name: str, value: Any) -> None:
    """Set a field, unless the value is None or empty."""
    if value is not None and value != {}:
        body[name] = value


def refuse(body: MutableMapping[str, Any], **neutral: Any) -> None:
    """Remove fields that are null or have a neutral value; refuse other values."""
    for name, nothing in neutral.items():
        value = body.pop(name, None)
        if value is not None and value != nothing:
            raise refusal(repr(name))


def plain(content: Any, where: str) -> str:
    """Return the text of content that has only text."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = list(objects(content, where))
    for part in parts:
        if not isinstance(part.get("text"), str):
            raise refusal(f"a part {part.get('type')!r:.80} in {where}")
    return "\n\n".join(part["text"] for part in parts)


def function(tool: Json) -> Json:
    """Return the name, the description, the parameters and the strictness of a function in any form."""
    kind, nested = tool.get("type"), tool.get("function")
    if isinstance(nested, dict):
        found = nested
    elif kind == "function":
        found = tool
    elif "input_schema" in tool:
        found = {**tool, "parameters": tool["input_schema"]}
    elif is_agui_tool(tool):
        found = tool
    else:
        raise refusal(f"a tool of the type {kind!r:.80}")
    kept = {name: found[name] for name in ("name", "description", "parameters", "strict") if name in found}
    return {name: value for name, value in kept.items() if value is not None}


def is_anthropic_tool(tool: Json) -> bool:
    """Whether a tool is in Anthropic's form; its own tools have a date in their type."""
    return "input_schema" in tool or bool(_ANTHROPIC_TOOL.fullmatch(str(tool.get("type"))))


def is_agui_tool(tool: Json) -> bool:
    """Whether a tool is in AG-UI's form: it may have no parameters, and has no type."""
    return "type" not in tool and "name" in tool and "description" in tool and "input_schema" not in tool


def refuse_state(body: MutableMapping[str, Any]) -> None:
    """Refuse the state and the properties of an AG-UI run, unless they are empty: a model has no use for them."""
    for name in ("state", "forwardedProps"):
        if body.get(name) in ({}, [], ""):
            del body[name]
    refuse(body, state=None, forwardedProps=None)


def choice(given: Any) -> tuple[str, str | None]:
    """Return a tool choice of any form as auto, none, required or tool, with the tool's name."""
    if isinstance(given, str):
        return given, None
    if isinstance(given, dict):
        kind = given.get("type")
        if kind == "function":
            return "tool", inner(given, "function").get("name") or given.get("name")
        if kind in _ANTHROPIC_CHOICES:
            return _ANTHROPIC_CHOICES[kind], given.get("name")
    raise refusal(f"the tool_choice {given!r:.80}")


def is_anthropic_choice(given: Any) -> bool:
    """Whether a tool choice is in Anthropic's form."""
    return isinstance(given, dict) and given.get("type") in _ANTHROPIC_CHOICES


def anthropic_parallel(body: MutableMapping[str, Any]) -> None:
    """Set OpenAI's `parallel_tool_calls` from Anthropic's tool choice."""
    given = body.get("tool_choice")
    if isinstance(given, dict) and is_anthropic_choice(given) and given.get("disable_parallel_tool_use"):
        body.setdefault("parallel_tool_calls", False)


def answer_format(body: MutableMapping[str, Any], text: Json) -> Json | None:
    """Remove the answer's format, in any form, and return it in that of Responses."""
    config = inner(body, "output_config")
    if nested := take(body, "response_format"):
        return {**inner({"it": nested}, "it").get("json_schema", {}), "type": nested["type"]}
    if given := text.get("format"):
        return dict(given)
    if schema := inner(config, "format").get("schema"):
        return {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}
    return None


def json_text(value: Any) -> str:
    """Return a tool's arguments or result as a text."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()
