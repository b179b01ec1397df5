"""The bodies that a page of the AI SDK sends, and how its messages become the input of a generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from ..dialects.aisdk_message import Earlier
from ..errors import GenerationError, InvalidRequest
from ..generators import conversation
from .aisdk_approvals import Answered
from .aisdk_conversations import Place
from .validation import Items, Name, Text, storable

REGENERATE: Final = "regenerate-message"
_OLD_SDK: Final = (
    "a message needs `parts`. `content` comes from AI SDK 3 or 4, whose pages cannot read these answers: set "
    "`api` to /v1/ai-sdk/v4/chat, or /v1/ai-sdk/v3/chat"
)


class UIMessage(BaseModel):
    """One message of a page."""

    model_config = ConfigDict(strict=True)

    id: Any = None
    role: Literal["system", "user", "assistant"]
    parts: Items[dict[str, Any]]
    metadata: Any = None

    @model_validator(mode="before")
    @classmethod
    def _is_readable(cls, message: Any) -> Any:
        """Refuse a page that cannot read the answer, before it is generated. Newer AI SDKs do not send `content`."""
        if isinstance(message, dict) and "content" in message:
            raise ValueError(_OLD_SDK)
        return message


class SendMessages(BaseModel):
    """What a page sends. `model` names a generator, which gets the messages and all fields not listed here."""

    model_config = ConfigDict(extra="allow", strict=True)

    id: Text | None = None
    messages: Items[UIMessage]
    model: Name | None = None
    trigger: Any = None
    messageId: Any = None  # noqa: N815

    @model_validator(mode="before")
    @classmethod
    def _can_be_written(cls, content: Any) -> Any:
        return storable(content)


class SendMessage(BaseModel):
    """What a page sends if the server keeps the conversation: its last message, or a request to regenerate an answer.

    `previousMessageId` names the message before it. If that is given and not stored, the request is refused.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    id: Text
    message: UIMessage | None = None
    model: Name | None = None
    trigger: Any = None
    messageId: Text | None = None  # noqa: N815
    previousMessageId: Text | None = None  # noqa: N815

    @model_validator(mode="before")
    @classmethod
    def _can_be_written(cls, content: Any) -> Any:
        return storable(content)


def has_last_message_only(content: Any) -> bool:
    """Whether a body has only the last message, or none."""
    if not isinstance(content, dict) or content.get("messages") is not None:
        return False
    return content.get("message") is not None or content.get("trigger") == REGENERATE


def converted(messages: Sequence[UIMessage], answers: Sequence[Answered]) -> tuple[list[dict[str, Any]], list[Place]]:
    """Convert messages, so that generators get one form from all clients; also return where each begins."""
    allowed = {answer.call_id for answer in answers if answer.approved}
    found: list[dict[str, Any]] = []
    places = []
    try:
        for message in messages:
            places.append(Place(id_of(message), len(found)))
            last = {"allowed": allowed} if message is messages[-1] else {}
            found += conversation.messages([{"role": message.role, "parts": message.parts}], **last)
    except GenerationError as error:
        raise InvalidRequest(error.message) from None
    return found, places


def id_of(message: UIMessage) -> str | None:
    """Return the id of a message; None if the page gave none."""
    return message.id if isinstance(message.id, str) and message.id else None


def continuation_of(messages: Sequence[UIMessage], answers: Sequence[Answered]) -> dict[str, Any]:
    """Return the message that the stream continues, and the calls in it that the user has allowed; empty if none."""
    last = messages[-1] if messages else None
    if last is None or last.role != "assistant" or id_of(last) is None:
        return {}
    message = {"id": last.id, "parts": last.parts, "metadata": last.metadata}
    try:
        Earlier.of(message)
    except GenerationError as error:
        raise InvalidRequest(error.message) from None
    return {"message": message, "approvals": [answer.as_approval() for answer in answers if answer.approved]}
