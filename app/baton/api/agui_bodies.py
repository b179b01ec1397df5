"""The bodies that AG-UI's client sends, and where its messages are among the chat messages of a generator."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..errors import GenerationError, InvalidRequest
from ..generators import conversation
from .aisdk_conversations import Place
from .validation import Items, Text, storable

Json = dict[str, Any]
_Id = Annotated[Text, Field(min_length=1)]

# What the generator gets. The other fields are about the request itself.
_GIVEN: Final = ("messages", "tools", "context", "state", "forwardedProps")
_ANSWER: Final = re.compile(r"msg_[0-9a-f]{32}", re.ASCII)


class ResumeEntry(BaseModel):
    """The answer to one interrupt."""

    model_config = ConfigDict(extra="allow", strict=True)

    interruptId: str  # noqa: N815
    status: Literal["resolved", "cancelled"]
    payload: Any = None


class RunAgentInput(BaseModel):
    """What AG-UI's client sends. The generator gets the messages, tools, context, state and properties as they are."""

    model_config = ConfigDict(extra="allow", strict=True)

    threadId: _Id  # noqa: N815
    runId: _Id  # noqa: N815
    messages: Items[Json]
    tools: Items[Json] | None = None
    context: Items[Json] | None = None
    state: Any = None
    forwardedProps: Any = None  # noqa: N815
    resume: Items[ResumeEntry] | None = None
    protocolVersion: Any = None  # noqa: N815
    parentRunId: Any = None  # noqa: N815

    @model_validator(mode="before")
    @classmethod
    def _can_be_written(cls, content: Any) -> Any:
        return storable(content)

    def given(self) -> Json:
        """Return what the generator gets."""
        sent = self.model_dump(include=set(_GIVEN), exclude_unset=True)
        return {**(self.model_extra or {}), **sent}


def places_of(messages: Sequence[Json]) -> list[Place]:
    """Return where each message begins among the chat messages that all become. An answer's messages have one place.

    Raises:
        InvalidRequest: a message cannot be converted.
    """
    places: list[Place] = []
    start = 0
    for message in messages:
        name = message.get("id")
        name = name if isinstance(name, str) and name else None
        if not _is_part_of(places[-1].id if places else None, name):
            places.append(Place(name, start))
        try:
            start += len(conversation.messages([message]))
        except GenerationError as error:
            raise InvalidRequest(error.message) from None
    return places


def _is_part_of(answer: str | None, name: str | None) -> bool:
    """Whether a message belongs to the answer of a stream that the message before it begins or belongs to."""
    if answer is None or name is None or not _ANSWER.fullmatch(answer):
        return False
    return name.startswith(f"{answer}_")


def calls_of(messages: Sequence[Json]) -> frozenset[str]:
    """Return the ids of the calls in AG-UI's messages."""
    found = (call for message in messages for call in message.get("toolCalls") or () if isinstance(call, Mapping))
    return frozenset(str(call.get("id")) for call in found)


def thoughts_of(messages: Sequence[Json], stream_digits: str) -> list[str]:
    """Return the id of a stream's first message of reasoning, if a client has any of them."""
    prefix = f"msg_{stream_digits}_reasoning_"
    return [f"{prefix}1"] if any(str(message.get("id")).startswith(prefix) for message in messages) else []


def shown(asked: Any, beside: Mapping[str, Any], stream_digits: str) -> list[Json] | None:
    """Return the conversation that a stream answers as AG-UI's messages; None if its input is none."""
    if "agui" in beside:
        return list(asked["messages"])
    kept = {name: asked[name] for name in ("messages", "input") if name in asked} if isinstance(asked, dict) else asked
    try:
        said = conversation.messages(kept)
        return conversation.for_agui(list(_named(said, beside.get("places", ()), stream_digits)))
    except GenerationError:
        return None


def _named(said: Sequence[Json], places: Sequence[Sequence[Any]], stream_digits: str) -> Iterator[tuple[str, Json]]:
    """Yield chat messages with the ids that a page gave them, or else with their numbers."""
    known = {start: name for name, start in places if name is not None}
    for number, message in enumerate(said):
        yield known.get(number) or f"msg_{stream_digits}_in_{number}", message


def as_json(messages: Sequence[Json]) -> bytes:
    """Return messages as a JSON list."""
    return orjson.dumps(list(messages))
