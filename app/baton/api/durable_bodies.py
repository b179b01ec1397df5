"""The bodies of producers as lines of a stream's log, by the kind of the stream; pure functions.

A line is JSON and has no line ends, as every line of the log:

- `events`: an event, as a generator yields it. A message `finish` or `error` is no event but the end of the stream.
- `json`: the message as it was written.
- `text`: the body as a JSON string. What is not UTF-8 is stored like bytes: a character may be cut into two appends.
- `bytes`: `{"b64": …}`, the body in base64.

An append of text or bytes is one line. One of JSON has a line for each message: the elements of an array, or one value.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from ..db.external_streams import Kind
from ..db.stream_ending import REWOUND
from ..errors import InvalidEvent, InvalidRequest
from ..events import TOKEN_TYPES, encode_event, escape_line_ends, read_json
from ..outcome import Outcome
from . import json_text

# How a stream ends that is closed without a reason.
CLOSED: Final = Outcome.completed("stop")

_ENDS: Final = frozenset({"finish", "error"})
# What Baton itself writes into a log, or generators say to their worker.
_RESERVED: Final = frozenset({"done", "reset", "resumed", "state", "continue"})


class Messages(NamedTuple):
    """A body as lines of the log, the `tokens` in it (text, reasoning, tool calls), and the end that it stands for."""

    lines: list[bytes]
    tokens: int = 0
    outcome: Outcome | None = None


def messages(kind: Kind, body: bytes) -> Messages:
    """Return the messages in a body, which is not empty; an empty array has none.

    Raises:
        InvalidRequest: it is not what a stream of this kind takes.
    """
    match kind:
        case "events":
            return _events(body)
        case "json":
            return Messages(json_text.messages(body))
        case "text":
            return Messages([_text(body)])
        case "bytes":
            return Messages([_bytes(body)])


def _text(body: bytes) -> bytes:
    try:
        return escape_line_ends(orjson.dumps(body.decode()))
    except UnicodeDecodeError:
        return _bytes(body)


def _bytes(body: bytes) -> bytes:
    return b'{"b64":"' + base64.b64encode(body) + b'"}'


def _events(body: bytes) -> Messages:
    try:
        content = read_json(body)
    except ValueError as error:
        raise InvalidRequest(f"The body is not JSON: {error}.") from None
    given: Sequence[Any] = content if isinstance(content, list) else [content]
    outcome = _outcome(given[-1]) if given else None
    events = given if outcome is None else given[:-1]
    lines = [_event(event) for event in events]
    return Messages(lines, sum(event["type"] in TOKEN_TYPES for event in events), outcome)


def _event(event: Any) -> bytes:
    if not isinstance(event, Mapping):
        raise InvalidRequest(f"A message of this stream is an event, a JSON object with a type, not {event!r:.80}.")
    kind = event.get("type")
    if isinstance(kind, str) and kind in _ENDS:
        raise InvalidRequest(f"A message of type {kind} ends the stream, so it must be the last one.")
    if isinstance(kind, str) and kind in _RESERVED:
        raise InvalidRequest(
            f"Only Baton itself writes events of type {kind}. To end the stream, send finish or error."
        )
    try:
        return escape_line_ends(encode_event(event))
    except InvalidEvent as error:
        raise InvalidRequest(str(error)) from None


def _outcome(message: Any) -> Outcome | None:
    """Return the end that a message stands for; None if it is another one."""
    kind = message.get("type") if isinstance(message, Mapping) else None
    if kind == "finish":
        reason = message.get("finish_reason")
        if not isinstance(reason, str | None):
            raise InvalidRequest("In a finish message, 'finish_reason' must be a string or missing.")
        return Outcome.completed((reason or "stop").lower())
    if kind == "error":
        code, text = message.get("code"), message.get("message")
        if not (isinstance(code, str) and isinstance(text, str)):
            raise InvalidRequest("An error message needs 'code' and 'message' as strings.")
        if code == REWOUND.code:
            raise InvalidRequest(f"Only Baton itself ends a stream with the code {code}.")
        return Outcome.failed(code, text)
    return None
