"""A stored conversation in the forms of the APIs whose requests hold one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import GenerationError, InvalidRequest
from ..generators import conversation as forms
from .stored_conversations import Message, StoredConversation

Json = dict[str, Any]


def in_form(found: StoredConversation, form: str) -> Json:
    """Return a conversation as the fields of a request that hold it.

    Raises:
        InvalidRequest: the form cannot express it.
    """
    body = {"messages": found.chat_messages}
    try:
        if form == "responses":
            return {"input": forms.for_responses(body)["input"]}
        if form == "anthropic":
            converted = forms.for_anthropic(body)
            return {name: converted[name] for name in ("system", "messages") if name in converted}
        if form == "aisdk":
            return {"messages": on_page(found.messages)}
    except GenerationError as error:
        raise InvalidRequest(f"The conversation cannot be written as {form}: {error.message}") from None
    return body


def on_page(messages: Sequence[Message]) -> list[Json]:
    """Return messages as a page of the AI SDK has them, without one that is growing."""
    shown: list[Json] = []
    for message in messages:
        if message.growing:
            continue
        if message.on_page is not None:
            shown.append({**message.on_page, "parts": [dict(part) for part in message.on_page["parts"]]})
            continue
        for result in message.content:
            if result["role"] == "tool":
                forms.answer_call([part for one in shown for part in one["parts"]], result)
        for number, made in enumerate(forms.for_aisdk(message.content)):
            own = message.id or message.place
            shown.append({"id": own if number == 0 else f"{own}_{number}", **made})
    return shown
