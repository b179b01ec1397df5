"""The `openai` generator with `"resume": "prefix"`: a server is asked to continue a partial assistant message.

vLLM, SGLang, llama.cpp, Text Generation Inference and others do so in the Chat Completions API with
`continue_final_message`. A later run sends the conversation with the text so far as its last message, and gets what
follows. OpenAI's own API refuses that; a server that ignores unknown fields would begin its answer again.

A text is all that can be continued this way. The answer starts over if it has reasoning or a tool call: servers differ
in how their templates render these, and parsers may then take text for reasoning. It does so too if the request
constrains the output, since a grammar would begin at its start.

The text is sent without the white space at its end. Some templates strip that, and most vocabularies have words with a
space before them, so after a space a model continues badly. White space that comes again is dropped.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

from ..errors import GenerationError
from ..settings import Settings
from .accounts import Account
from .openai import ChatGenerator
from .protocol import GenerationRequest, SoFar, Yielded
from .provider import permitted

logger = logging.getLogger(__name__)

# Fields that constrain the output, in the APIs of the servers.
_CONSTRAINTS: Final = frozenset(
    {
        "grammar",
        "guided_choice",
        "guided_grammar",
        "guided_json",
        "guided_regex",
        "ebnf",
        "json_schema",
        "regex",
        "structured_outputs",
    }
)


class PrefixGenerator(ChatGenerator):
    """Asks a model through the Chat Completions API of a server that can continue a message."""

    continues = True

    async def ask(self, request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        """Ask the server to continue the answer so far, or else for a new one, and yield what comes."""
        partial = self._partial(request)
        if partial is not None:
            async with aclosing(super().ask(replace(request, input=partial))) as answer:
                first = await _first(answer, may_think=not request.so_far.text.strip())
                if first is not None:
                    yield {"type": "continue", "after": request.so_far.seq}
                    seam = _Seam(request.so_far.text)
                    for item in seam.join(first):
                        yield item
                    async for following in answer:
                        for item in seam.join(following):
                            yield item
                    return
        async with aclosing(super().ask(request)) as answer:
            async for item in answer:
                yield item

    def _partial(self, request: GenerationRequest) -> dict[str, Any] | None:
        """Return the body that asks for the rest of the answer so far; None if it cannot be continued."""
        if request.run == 1 or not _is_text(request.so_far):
            return None
        body = self.body(permitted(request.input))
        text = request.so_far.text.rstrip()
        if not text:
            return body
        if _is_constrained(body) or "messages" not in body:
            return None
        body.pop("echo", None)  # the server would repeat the message
        return body | {
            "messages": [*body["messages"], {"role": "assistant", "content": text}],
            "continue_final_message": True,
            "add_generation_prompt": False,
        }


class _Seam:
    """Joins an answer to the text so far, whose white space at its end was not sent."""

    def __init__(self, so_far: str) -> None:
        self._owed = so_far[len(so_far.rstrip()) :]

    def join(self, item: Yielded) -> Iterator[Yielded]:
        """Yield an item of the continued answer without the white space that the text so far ends with."""
        if not self._owed or not isinstance(item, str):
            yield item
            return
        pairs = zip(self._owed, item, strict=False)
        common = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
        self._owed = self._owed[common:] if common == len(item) else ""
        if rest := item[common:]:
            yield rest


async def _first(answer: AsyncGenerator[Yielded, None], *, may_think: bool) -> Yielded | None:
    """Return the first item of a continued answer; None if the server does not continue it.

    Raises:
        GenerationError: the provider failed in a way that has nothing to do with that.
    """
    try:
        first = await anext(answer)
    except GenerationError as error:
        if error.code != "provider_invalid_request":
            raise
        logger.warning("The server refused to continue the message, so the answer starts over.", exc_info=True)
        return None
    if isinstance(first, Mapping) and first["type"] == "reasoning" and not may_think:
        logger.warning("The server continued the message with reasoning, so the answer starts over.")
        return None
    return first


def _is_text(so_far: SoFar) -> bool:
    return not (so_far.reasoning or so_far.tool_calls or so_far.tool_results or so_far.custom)


def _is_constrained(body: Mapping[str, Any]) -> bool:
    """Whether a request constrains its output: to a schema, a grammar, or a call of a tool."""
    form = body.get("response_format")
    if isinstance(form, Mapping) and form.get("type") != "text":
        return True
    return body.get("tool_choice", "auto") not in ("auto", "none") or any(body.get(name) for name in _CONSTRAINTS)


def build(settings: Settings, account: Account) -> PrefixGenerator:
    """Return the generator."""
    return PrefixGenerator(settings, account)
