"""The `openai` generator: OpenAI's models, and any server with one of its two APIs.

The input is a text, a list of messages (input items), or an object of parameters: `model`, `messages` or `input`,
`tools`, `instructions`, `temperature` and so on, in the form of any of the APIs that `conversation` knows. Fields that
the SDK does not know are sent, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Final, cast

import openai

from ..errors import GenerationError
from ..settings import Settings
from . import conversation
from .accounts import Account, default_account
from .chat_answer import ChatAnswer
from .done import Marked
from .protocol import Yielded
from .provider import Provider, SdkErrors, SdkStream, http_client, http_library
from .provider_answer import ProviderAnswer, openai_usage, part
from .sdk_errors import reported

CALLS: Final = frozenset({"function_call", "custom_tool_call"})

# Servers without access control accept any key, but the SDK requires one.
_NO_KEY = "none"


class OpenAIProvider(Provider):
    """What both APIs have in common."""

    name = "openai"
    model_setting = "BATON_OPENAI_MODEL"
    errors = SdkErrors(openai.OpenAIError, openai.APIConnectionError, openai.APITimeoutError)
    http = http_library(openai.DefaultAsyncHttpxClient)
    request_id_header = "x-request-id"

    def __init__(self, settings: Settings, account: Account) -> None:
        super().__init__(settings, settings.openai_model)
        self.client = openai.AsyncOpenAI(
            api_key=account.key or _NO_KEY,
            base_url=account.base_url,
            max_retries=0,
            http_client=http_client(settings, self.http),
        )
        # The SDK reads these variables itself. They belong to the settings' own key.
        self.client.organization = _variable("OPENAI_ORG_ID") if account.is_default else None
        self.client.project = _variable("OPENAI_PROJECT_ID") if account.is_default else None

    async def aclose(self) -> None:
        """Close the connections to the provider."""
        await self.client.close()


def _variable(name: str) -> str | None:
    """Return an environment variable of the SDK, without a line break at its end."""
    return os.environ.get(name, "").strip() or None


class ResponsesGenerator(OpenAIProvider):
    """Asks a model through the Responses API."""

    def __init__(self, settings: Settings, account: Account) -> None:
        super().__init__(settings, account)
        # The SDK imports a resource at its first use. Do it now, and not while streams run.
        self._responses = self.client.responses

    def body(self, given: Any) -> dict[str, Any]:
        """Return an input of any form as the body of a request."""
        return conversation.for_responses(given)

    async def open(self, model: str, body: dict[str, Any]) -> SdkStream:
        """Send the request and return its streamed response."""
        return await self._responses.create(model=model, stream=True, extra_body=body)

    def answer(self) -> ProviderAnswer:
        """Return what translates one streamed response."""
        return ResponsesAnswer()


class ChatGenerator(OpenAIProvider):
    """Asks a model through the Chat Completions API, which most compatible servers have."""

    def __init__(self, settings: Settings, account: Account) -> None:
        super().__init__(settings, account)
        self._completions = self.client.chat.completions

    def body(self, given: Any) -> dict[str, Any]:
        """Return an input of any form as the body of a request."""
        return conversation.for_chat(given)

    async def open(self, model: str, body: dict[str, Any]) -> SdkStream:
        """Send the request and return its streamed response."""
        if "messages" not in body:
            raise GenerationError("invalid_input", 'The input needs "messages".')
        options = body.pop("stream_options", None)
        options = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        stream = await self._completions.create(
            model=model,
            messages=body.pop("messages"),
            stream=True,
            stream_options=cast(Any, options),
            extra_body=body,
        )
        return Marked(stream)

    def answer(self) -> ProviderAnswer:
        """Return what translates one streamed response."""
        return ChatAnswer()


class ResponsesAnswer(ProviderAnswer):
    """Translates the events of the Responses API.

    Some compatible servers send a text or a call only when it is whole: as its `done` event, or in the Response at the
    end. What has already come as deltas is ignored there.
    """

    def __init__(self) -> None:
        super().__init__()
        self._begun: set[Hashable] = set()  # the output items that have begun
        self._handlers: dict[str, Callable[[Any], Iterator[Yielded]]] = {
            "response.output_text.delta": self._text,
            "response.refusal.delta": self._text,
            "response.reasoning_text.delta": self._reasoning,
            "response.reasoning_summary_text.delta": self._reasoning,
            "response.reasoning_summary_part.added": self._summary_part,
            "response.output_text.done": self._whole_text,
            "response.refusal.done": self._whole_text,
            "response.reasoning_text.done": self._whole_reasoning,
            "response.reasoning_summary_text.done": self._whole_reasoning,
            "response.output_item.added": self._item,
            "response.output_item.done": self._whole_item,
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
        """Yield the events of a provider's event."""
        handler = self._handlers.get(part(event, "type"))
        if handler is not None:
            yield from handler(event)

    def _text(self, event: Any) -> Iterator[Yielded]:
        if event.delta:
            self._begun |= _names_of(event)
            yield event.delta

    def _whole_text(self, event: Any) -> Iterator[Yielded]:
        whole = part(event, "text") or part(event, "refusal")
        if whole and content_of(event) not in self._begun:
            self._begun |= _names_of(event)
            yield whole

    def _reasoning(self, event: Any) -> Iterator[Yielded]:
        if event.delta:
            self._begun |= _names_of(event)
            yield {"type": "reasoning", "delta": event.delta}

    def _whole_reasoning(self, event: Any) -> Iterator[Yielded]:
        for text in self._whole_text(event):
            yield {"type": "reasoning", "delta": text}

    def _summary_part(self, event: Any) -> Iterator[Yielded]:
        if part(event, "summary_index"):
            yield {"type": "reasoning", "delta": "\n\n"}

    def _item(self, event: Any) -> Iterator[Yielded]:
        """Begin a call if its name is known. Otherwise `_whole` does, once the whole call has come."""
        name = part(event, "item", "name")
        if part(event, "item", "type") in CALLS and name and _item_of(event) not in self._begun:
            yield self._begin_call(_item_of(event), event.item)

    def _begin_call(self, key: Hashable, item: Any) -> Yielded:
        self._begun.add(key)
        arguments = part(item, "arguments") or part(item, "input") or ""
        return self.tool_calls.begin(key, part(item, "call_id") or part(item, "id"), part(item, "name"), arguments)

    def _arguments(self, event: Any) -> Iterator[Yielded]:
        yield from self.tool_calls.extend(_item_of(event), event.delta)

    def _all_arguments(self, event: Any) -> Iterator[Yielded]:
        whole = part(event, "arguments") or part(event, "input")
        yield from self.tool_calls.complete(_item_of(event), whole)

    def _whole_item(self, event: Any) -> Iterator[Yielded]:
        item_id = part(event, "item", "id")
        yield from self._whole(item_id if item_id in self._begun else _item_of(event), part(event, "item"))

    def _whole(self, key: Hashable, item: Any) -> Iterator[Yielded]:
        """Yield an output item that came whole. If it has begun as a call, yield only its missing arguments."""
        kind = part(item, "type")
        if key in self._begun:
            if kind in CALLS:
                yield from self.tool_calls.complete(key, part(item, "arguments") or part(item, "input"))
        elif kind in CALLS:
            yield self._begin_call(key, item)
        elif kind == "message":
            self._begun.add(key)
            for content in part(item, "content") or ():
                if text := part(content, "text") or part(content, "refusal"):
                    yield text

    def _end(self, event: Any) -> Iterator[Yielded]:
        if not self._begun:
            for number, item in enumerate(part(event, "response", "output") or ()):
                yield from self._whole(number, item)
        self.usage = _responses_usage(part(event, "response", "usage"))
        reason = part(event, "response", "incomplete_details", "reason")
        if reason:
            self.finish_reason = "length" if reason == "max_output_tokens" else reason
        elif event.type == "response.incomplete":
            self.finish_reason = "length"
        else:
            self.finish_reason = "tool_calls" if self.tool_calls.count else "stop"

    def _failed(self, event: Any) -> Iterator[Yielded]:
        usage = _responses_usage(part(event, "response", "usage"))
        if usage is not None:
            yield usage
        raise reported({"code": part(event, "response", "error", "code")})

    def _error(self, event: Any) -> Iterator[Yielded]:
        yield from ()
        raise reported({"code": part(event, "code")})


def build(settings: Settings, account: Account | None = None) -> OpenAIProvider:
    """Return the generator for the API that the settings choose, with their account by default."""
    account = account or default_account(settings, "openai")
    return ChatGenerator(settings, account) if settings.openai_api == "chat" else ResponsesGenerator(settings, account)


def _item_of(event: Any) -> Hashable:
    """Return the key of the output item of an event: its place, or else its id."""
    place: int | None = part(event, "output_index")
    if place is not None:
        return place
    name: Hashable = part(event, "item_id") or part(event, "item", "id")
    return name


def content_of(event: Any) -> Hashable:
    """Return the key of the text, the refusal or the reasoning of an output item."""
    return str(part(event, "type")).rpartition(".")[0], _item_of(event), part(event, "summary_index")


def _names_of(event: Any) -> set[Hashable]:
    """Return all keys of the item and content of an event."""
    return {_item_of(event), content_of(event), part(event, "item_id")}


def _responses_usage(usage: Any) -> Yielded | None:
    return None if usage is None else openai_usage(usage, "input", "output")
