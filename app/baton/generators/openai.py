"""The `openai` generator: OpenAI's models, and any server that speaks either of its two APIs.

The input is a text, a list of messages (input items), or an object of parameters: `model`, `messages` or `input`,
`tools`, `instructions`, `temperature` and so on, in the form of any of the APIs that `conversation` knows. What the SDK
does not know is sent too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, cast

import openai

from ..errors import GenerationError
from ..settings import Settings
from . import conversation
from .answer import Answer, part, usage_event
from .protocol import Yielded
from .provider import EventStream, Provider, SdkErrors, http_client, reported

# Servers without access control take any key, but the SDK insists on one.
_NO_KEY = "none"


class OpenAIProvider(Provider):
    """What both APIs have in common."""

    name = "openai"
    model_setting = "BATON_OPENAI_MODEL"
    errors = SdkErrors(openai.OpenAIError, openai.APIConnectionError, openai.APITimeoutError)

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, settings.openai_model)
        key = settings.openai_api_key.get_secret_value() if settings.openai_api_key else ""
        self.client = openai.AsyncOpenAI(
            api_key=key or _NO_KEY,
            organization=_variable("OPENAI_ORG_ID"),
            project=_variable("OPENAI_PROJECT_ID"),
            base_url=settings.openai_base_url,
            max_retries=settings.provider_max_retries,
            http_client=http_client(settings),
        )

    async def aclose(self) -> None:
        """Close the connections to the provider."""
        await self.client.close()


def _variable(name: str) -> str | None:
    """Return a variable that the SDK goes by, without the line break of a file that it came from."""
    return os.environ.get(name, "").strip() or None


class ResponsesGenerator(OpenAIProvider):
    """Asks by the Responses API."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        # The SDK imports a resource when it is first touched: now, rather than under running streams.
        self._responses = self.client.responses

    def body(self, given: Any) -> dict[str, Any]:
        """Return an input of any form as the body of a request."""
        return conversation.for_responses(given)

    async def open(self, model: str, body: dict[str, Any]) -> EventStream:
        """Send the request and return its streamed response."""
        return await self._responses.create(model=model, stream=True, extra_body=body)

    def answer(self) -> Answer:
        """Return what translates one streamed response."""
        return ResponsesAnswer()


class ChatGenerator(OpenAIProvider):
    """Asks by the Chat Completions API, which most compatible servers speak."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._completions = self.client.chat.completions

    def body(self, given: Any) -> dict[str, Any]:
        """Return an input of any form as the body of a request."""
        return conversation.for_chat(given)

    async def open(self, model: str, body: dict[str, Any]) -> EventStream:
        """Send the request and return its streamed response."""
        if "messages" not in body:
            raise GenerationError("invalid_input", 'The input needs "messages".')
        given = body.pop("stream_options", None)
        options = {**(given if isinstance(given, dict) else {}), "include_usage": True}
        return await self._completions.create(
            model=model,
            messages=body.pop("messages"),
            stream=True,
            stream_options=cast(Any, options),
            extra_body=body,
        )

    def answer(self) -> Answer:
        """Return what translates one streamed response."""
        return ChatAnswer()


class ResponsesAnswer(Answer):
    """Translates the events of the Responses API."""

    def __init__(self) -> None:
        super().__init__()
        self._handlers: dict[str, Callable[[Any], Iterator[Yielded]]] = {
            "response.output_text.delta": self._text,
            "response.refusal.delta": self._text,
            "response.reasoning_text.delta": self._reasoning,
            "response.reasoning_summary_text.delta": self._reasoning,
            "response.reasoning_summary_part.added": self._summary_part,
            "response.output_item.added": self._item,
            "response.function_call_arguments.delta": self._arguments,
            "response.custom_tool_call_input.delta": self._arguments,
            "response.function_call_arguments.done": self._all_arguments,
            "response.custom_tool_call_input.done": self._all_arguments,
            "response.completed": self._end,
            "response.incomplete": self._end,
            "response.failed": self._failed,
            "error": self._error,
        }

    def translate(self, event: Any) -> Iterator[Yielded]:
        """Yield what a provider's event becomes."""
        handler = self._handlers.get(part(event, "type"))
        if handler is not None:
            yield from handler(event)

    def _text(self, event: Any) -> Iterator[Yielded]:
        if event.delta:
            yield event.delta

    def _reasoning(self, event: Any) -> Iterator[Yielded]:
        if event.delta:
            yield {"type": "reasoning", "delta": event.delta}

    def _summary_part(self, event: Any) -> Iterator[Yielded]:
        if part(event, "summary_index"):
            yield {"type": "reasoning", "delta": "\n\n"}

    def _item(self, event: Any) -> Iterator[Yielded]:
        item = event.item
        if item.type == "function_call":
            yield self.tool_calls.begin(event.output_index, item.call_id, item.name, part(item, "arguments") or "")
        elif item.type == "custom_tool_call":
            yield self.tool_calls.begin(event.output_index, item.call_id, item.name, part(item, "input") or "")

    def _arguments(self, event: Any) -> Iterator[Yielded]:
        yield from self.tool_calls.extend(event.output_index, event.delta)

    def _all_arguments(self, event: Any) -> Iterator[Yielded]:
        whole = part(event, "arguments") or part(event, "input")
        yield from self.tool_calls.complete(event.output_index, whole)

    def _end(self, event: Any) -> Iterator[Yielded]:
        self.usage = _responses_usage(part(event, "response", "usage"))
        reason = part(event, "response", "incomplete_details", "reason")
        if reason:
            self.finish_reason = "length" if reason == "max_output_tokens" else reason
        elif event.type == "response.incomplete":
            self.finish_reason = "length"
        else:
            self.finish_reason = "tool_calls" if self.tool_calls.count else "stop"
        yield from ()

    def _failed(self, event: Any) -> Iterator[Yielded]:
        usage = _responses_usage(part(event, "response", "usage"))
        if usage is not None:
            yield usage
        raise reported({"code": part(event, "response", "error", "code")})

    def _error(self, event: Any) -> Iterator[Yielded]:
        yield from ()
        raise reported({"code": part(event, "code")})


class ChatAnswer(Answer):
    """Translates the chunks of the Chat Completions API.

    Compatible servers differ: reasoning comes as `reasoning_content` or `reasoning`, and some give every
    parallel tool call the index 0 and only a new id.
    """

    def __init__(self) -> None:
        super().__init__()
        self._id_by_index: dict[int, str | None] = {}

    def translate(self, event: Any) -> Iterator[Yielded]:
        """Yield what a chunk becomes."""
        if (usage := part(event, "usage")) is not None:
            self.usage = _chat_usage(usage)
        for choice in part(event, "choices") or ():
            yield from self._delta(part(choice, "delta"))
            if reason := part(choice, "finish_reason"):
                self.finish_reason = "tool_calls" if reason == "function_call" else reason

    def _delta(self, delta: Any) -> Iterator[Yielded]:
        reasoning = part(delta, "reasoning_content") or part(delta, "reasoning")
        if isinstance(reasoning, str) and reasoning:
            yield {"type": "reasoning", "delta": reasoning}
        for text in (part(delta, "content"), part(delta, "refusal")):
            if text:
                yield text
        for call in part(delta, "tool_calls") or ():
            yield from self._tool_call(call)

    def _tool_call(self, call: Any) -> Iterator[Yielded]:
        key, call_id = part(call, "index") or 0, part(call, "id")
        arguments = part(call, "function", "arguments") or ""
        if key in self._id_by_index and call_id in {None, "", self._id_by_index[key]}:
            yield from self.tool_calls.extend(key, arguments)
        else:
            self._id_by_index[key] = call_id
            yield self.tool_calls.begin(key, call_id, part(call, "function", "name"), arguments)


def build(settings: Settings) -> OpenAIProvider:
    """Return the generator for the API that the settings choose."""
    return ChatGenerator(settings) if settings.openai_api == "chat" else ResponsesGenerator(settings)


def _responses_usage(usage: Any) -> Yielded | None:
    if usage is None:
        return None
    return usage_event(
        input_tokens=part(usage, "input_tokens"),
        output_tokens=part(usage, "output_tokens"),
        total_tokens=part(usage, "total_tokens"),
        cached_tokens=part(usage, "input_tokens_details", "cached_tokens"),
        cache_write_tokens=part(usage, "input_tokens_details", "cache_write_tokens"),
        reasoning_tokens=part(usage, "output_tokens_details", "reasoning_tokens"),
    )


def _chat_usage(usage: Any) -> Yielded:
    return usage_event(
        input_tokens=part(usage, "prompt_tokens"),
        output_tokens=part(usage, "completion_tokens"),
        total_tokens=part(usage, "total_tokens"),
        cached_tokens=part(usage, "prompt_tokens_details", "cached_tokens"),
        cache_write_tokens=part(usage, "prompt_tokens_details", "cache_write_tokens"),
        reasoning_tokens=part(usage, "completion_tokens_details", "reasoning_tokens"),
    )
