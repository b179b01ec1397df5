"""The `anthropic` generator: Anthropic's models, and any server with the Messages API.

The input is a text, a list of messages, or an object of parameters: `model`, `messages`, `system`, `tools`,
`max_tokens`, `thinking` and so on, in the form of any of the APIs that `conversation` knows. Our `input_tokens`
includes tokens from the cache, as OpenAI's does and Anthropic's does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import orjson

from ..errors import GenerationError
from ..settings import Settings
from . import conversation
from .accounts import Account, default_account
from .protocol import Yielded
from .provider import Provider, SdkErrors, SdkStream, http_client, http_library
from .provider_answer import ProviderAnswer, part, usage_event

# Servers without access control accept any key. Without one, the SDK would look for credentials on the disk.
_NO_KEY = "none"

_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}

_COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


class AnthropicGenerator(Provider):
    """Asks a model through the Messages API."""

    name = "anthropic"
    model_setting = "BATON_ANTHROPIC_MODEL"
    errors = SdkErrors(anthropic.AnthropicError, anthropic.APIConnectionError, anthropic.APITimeoutError)
    http = http_library(anthropic.DefaultAsyncHttpxClient)
    request_id_header = "request-id"

    def __init__(self, settings: Settings, account: Account) -> None:
        super().__init__(settings, settings.anthropic_model)
        self._max_tokens = settings.anthropic_max_tokens
        self._client = anthropic.AsyncAnthropic(
            api_key=account.key or _NO_KEY,
            base_url=account.base_url,
            max_retries=0,
            http_client=http_client(settings, self.http),
        )
        # The SDK imports a resource at its first use. Do it now, and not while streams run.
        self._messages = self._client.messages

    def body(self, given: Any) -> dict[str, Any]:
        """Return an input of any form as the body of a request."""
        return conversation.for_anthropic(given)

    async def open(self, model: str, body: dict[str, Any]) -> SdkStream:
        """Send the request and return its streamed response."""
        if "messages" not in body:
            raise GenerationError("invalid_input", 'The input needs "messages".')
        betas = body.pop("betas", None)
        return await self._messages.create(
            model=model,
            messages=body.pop("messages"),
            max_tokens=body.pop("max_tokens", self._max_tokens),
            stream=True,
            extra_headers={"anthropic-beta": ",".join(betas)} if betas else None,
            extra_body=body,
        )

    def answer(self) -> ProviderAnswer:
        """Return what translates one streamed response."""
        return MessagesAnswer()

    async def aclose(self) -> None:
        """Close the connections to the provider."""
        await self._client.close()


class MessagesAnswer(ProviderAnswer):
    """Translates the events of the Messages API."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[str, int] = {}
        self._input_by_block: dict[int, Any] = {}
        self._handlers: dict[str, Callable[[Any], Iterator[Yielded]]] = {
            "message_start": self._start,
            "content_block_start": self._block,
            "content_block_delta": self._delta,
            "content_block_stop": self._block_end,
            "message_delta": self._end,
            "message_stop": self._stop,
        }

    def translate(self, event: Any) -> Iterator[Yielded]:
        """Yield the events of a provider's event."""
        handler = self._handlers.get(part(event, "type"))
        if handler is not None:
            yield from handler(event)

    def _start(self, event: Any) -> Iterator[Yielded]:
        self._count(part(event, "message", "usage"))
        yield from ()

    def _block(self, event: Any) -> Iterator[Yielded]:
        block = event.content_block
        if block.type == "text" and part(block, "text"):
            yield block.text
        elif block.type == "thinking" and part(block, "thinking"):
            yield {"type": "reasoning", "delta": block.thinking}
        elif block.type == "redacted_thinking" and part(block, "data"):
            yield {"type": "reasoning", "delta": "", "redacted": block.data}
        elif block.type == "tool_use":
            index = part(event, "index")
            self._input_by_block[index] = part(block, "input")
            yield self.tool_calls.begin(index, part(block, "id"), part(block, "name"))

    def _delta(self, event: Any) -> Iterator[Yielded]:
        delta = event.delta
        if delta.type == "text_delta" and delta.text:
            yield delta.text
        elif delta.type == "thinking_delta" and delta.thinking:
            yield {"type": "reasoning", "delta": delta.thinking}
        elif delta.type == "signature_delta" and delta.signature:
            yield {"type": "reasoning", "delta": "", "signature": delta.signature}
        elif delta.type == "input_json_delta":
            yield from self.tool_calls.extend(part(event, "index"), delta.partial_json)

    def _block_end(self, event: Any) -> Iterator[Yielded]:
        """Complete a call. Without arguments it has no delta, and the empty string is not JSON."""
        index = part(event, "index")
        if index in self._input_by_block:
            yield from self._complete(index)

    def _end(self, event: Any) -> Iterator[Yielded]:
        self._count(part(event, "usage"))
        reason = part(event, "delta", "stop_reason")
        if reason:
            self.finish_reason = _FINISH_REASONS.get(reason, reason)
        yield from ()

    def _stop(self, event: Any) -> Iterator[Yielded]:
        """End the answer. Some compatible servers give no reason, and some do not end the blocks."""
        self._count(part(event, "usage"))
        for index in list(self._input_by_block):
            yield from self._complete(index)
        if self.finish_reason is None:
            self.finish_reason = "tool_calls" if self.tool_calls.count else "stop"

    def _complete(self, index: int) -> Iterator[Yielded]:
        whole = orjson.dumps(self._input_by_block.pop(index) or {}).decode()
        yield from self.tool_calls.complete(index, whole)

    def _count(self, usage: Any) -> None:
        """Keep the counts. They are running totals, and a later event may leave some out."""
        found = {name: part(usage, name) for name in _COUNTS}
        found["thinking_tokens"] = part(usage, "output_tokens_details", "thinking_tokens")
        self._counts.update({name: count for name, count in found.items() if count is not None})
        self.usage = self._usage() if self._counts else None

    def _usage(self) -> Yielded:
        counts = self._counts
        cached, written = counts.get("cache_read_input_tokens"), counts.get("cache_creation_input_tokens")
        input_tokens = counts.get("input_tokens", 0) + (cached or 0) + (written or 0)
        output_tokens = counts.get("output_tokens", 0)
        return usage_event(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            total_tokens=input_tokens + output_tokens,
            cached_tokens=cached,
            cache_write_tokens=written,
            reasoning_tokens=counts.get("thinking_tokens"),
        )


def build(settings: Settings, account: Account | None = None) -> AnthropicGenerator:
    """Return the generator, with the account of the settings by default."""
    return AnthropicGenerator(settings, account or default_account(settings, "anthropic"))
