"""Encodes events and parses cursors; pure functions.

A generator yields `str` (text) or a dict with a `type`. Each becomes one line of UTF-8 JSON. A batch in the log is such
lines joined by newlines. JSON escapes newlines, so a pod splits a batch into events without parsing it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import orjson

from .errors import InvalidEvent, MalformedCursor

# A regular expression for the id of a stream.
STREAM_ID = "[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}"

Status = Literal["queued", "running", "waiting", "open", "completed", "failed", "cancelled"]
FinalStatus = Literal["completed", "failed", "cancelled"]

MAX_SEQ = 2**31 - 1

# The events that a generator may yield: for each type, the required fields and their types.
_FIELDS: dict[str, dict[str, type]] = {
    "text": {"delta": str},
    "reasoning": {"delta": str},
    "tool_call": {"index": int},
    "tool_result": {"id": str},
    "tool_approval": {"id": str},
    "usage": {},
    "custom": {"name": str},
}
# Optional fields: a string, None or missing. Readers join them, so anything else would make a stream unreadable.
_OPTIONAL_STRINGS: dict[str, tuple[str, ...]] = {"tool_call": ("id", "name", "arguments_delta")}
# Optional fields with a fixed set of values.
_CHOICES: dict[str, dict[str, frozenset[str]]] = {"tool_call": {"run_by": frozenset({"client", "generator"})}}
TYPES = frozenset(_FIELDS)

# The types of most events.
_DELTAS = frozenset({"text", "reasoning"})
# The types whose events count as tokens in a stream's timings.
TOKEN_TYPES = frozenset({"text", "reasoning", "tool_call"})

_TYPE_NAMES = {str: "a string", int: "a whole number"}

_TEXT_HEAD = b'{"type":"text","delta":'
# The first bytes of every usage event.
USAGE_HEAD = b'{"type":"usage"'
# The first bytes of the events by which another run starts the answer over, or continues it.
RESET_HEAD = b'{"type":"reset"'
RESUMED_HEAD = b'{"type":"resumed"'
_DIGITS = re.compile(r"[0-9]{1,18}", re.ASCII)

# Line ends in Unicode but not in SSE or JSON. Client libraries that use `str.splitlines` would split there.
_UNICODE_LINE_ENDS = (("\u0085", rb"\u0085"), ("\u2028", rb"\u2028"), ("\u2029", rb"\u2029"))

# In JSON: an escaped backslash, a pair of escaped surrogates, and a lone one.
_ESCAPES = re.compile(
    rb"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)


def encode_text(delta: str) -> bytes:
    """Encode a text delta as one line of JSON. Lone surrogates become U+FFFD."""
    try:
        return _TEXT_HEAD + orjson.dumps(delta) + b"}"
    except TypeError:
        return _TEXT_HEAD + orjson.dumps(without_surrogates(delta)) + b"}"


def encode_event(event: Mapping[str, Any]) -> bytes:
    """Encode an event as one line of JSON that begins with its type.

    Raises:
        InvalidEvent: the type is unknown, a field is missing or of the wrong type, or a value is not JSON.
    """
    kind = event.get("type")
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise InvalidEvent(f"An event's type must be one of {', '.join(sorted({*TYPES, 'finish'}))}, not {kind!r:.80}.")
    for name, wanted in _FIELDS[kind].items():
        value = event.get(name)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise InvalidEvent(f"A {kind} event needs {name!r} as {_TYPE_NAMES[wanted]}.")
    for name in _OPTIONAL_STRINGS.get(kind, ()):
        if not isinstance(event.get(name), str | None):
            raise InvalidEvent(f"In a {kind} event, {name!r} must be a string or missing.")
    for name, choices in _CHOICES.get(kind, {}).items():
        value = event.get(name)
        if value is not None and not (isinstance(value, str) and value in choices):
            raise InvalidEvent(f"In a {kind} event, {name!r} must be one of {', '.join(sorted(choices))}, or missing.")
    if kind not in _DELTAS:
        _check_values(kind, event)
    return encode_object({"type": kind, **event})


def _check_values(kind: str, event: Mapping[str, Any]) -> None:
    """Reject values of the right type that are unusable.

    Raises:
        InvalidEvent: a name or an id is empty, an index is negative, or a usage cannot be added up.
    """
    for name, wanted in _FIELDS[kind].items():
        if wanted is str and not event[name]:
            raise InvalidEvent(f"A {kind} event needs {name!r} as a non-empty string.")
    if kind == "tool_call" and event["index"] < 0:
        raise InvalidEvent("In a tool_call event, 'index' must be 0 or greater.")
    if kind == "usage":
        _check_counts(event)


def _check_counts(event: Mapping[str, Any]) -> None:
    """Reject a usage that cannot be added up.

    Raises:
        InvalidEvent: a count of tokens is not a finite number, or a number is negative.
    """
    for name, value in event.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        tokens = str(name).endswith("_tokens") and value is not None
        if tokens and not (number and math.isfinite(value)):
            raise InvalidEvent(f"In a usage event, {name!r:.80} must be a number, not {value!r:.80}.")
        if number and value < 0:
            raise InvalidEvent(f"In a usage event, {name!r:.80} must not be negative, as {value!r:.80} is.")


def encode_object(event: Any) -> bytes:
    """Encode any JSON value as one line of JSON. Lone surrogates become U+FFFD.

    Raises:
        InvalidEvent: a value is not JSON.
    """
    try:
        return orjson.dumps(event)
    except TypeError:
        pass
    try:
        return orjson.dumps(clean(event))
    except (TypeError, RecursionError) as error:
        raise InvalidEvent(f"An event contains a value that JSON cannot represent: {error}.") from None


def join_lines(lines: list[bytes]) -> bytes:
    """Join encoded events into the content of one batch, in which line ends occur only between events."""
    return escape_line_ends(b"\n".join(lines))


def escape_line_ends(json: bytes) -> bytes:
    """Escape the characters of JSON that end a line in Unicode only: some clients would split there."""
    if b"\xe2\x80" in json or b"\xc2\x85" in json:
        for char, escape in _UNICODE_LINE_ENDS:
            json = json.replace(char.encode(), escape)
    return json


def without_surrogates(text: str) -> str:
    """Join surrogate pairs, and replace each lone surrogate, which UTF-8 cannot encode, with U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def clean(value: Any) -> Any:
    """Replace lone surrogates in every string of a JSON value."""
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, Mapping):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


def read_json(json: bytes | str) -> Any:
    """Parse JSON from other programs. Escaped lone surrogates, such as JavaScript's half emoji, become U+FFFD.

    Raises:
        orjson.JSONDecodeError: it is not JSON.
    """
    try:
        return orjson.loads(json)
    except ValueError:
        written = json.encode(errors="surrogatepass") if isinstance(json, str) else json
        return orjson.loads(_ESCAPES.sub(_without_lone_surrogate, written))


def _without_lone_surrogate(escape: re.Match[bytes]) -> bytes:
    return rb"\ufffd" if len(escape[0]) == len(rb"\ud800") else escape[0]


def begins_call(event: Mapping[str, Any], current: str | None) -> bool:
    """Whether a tool_call event begins a new call instead of continuing the call `current` at the same index.

    Agents with several steps may number the calls of each step from 0.
    """
    given = event.get("id")
    return bool(given) and current is not None and given != current


def parse_cursor(raw: str | None) -> int:
    """Return the sequence number of the last event that a client has received; 0 for none.

    Raises:
        MalformedCursor: it is not a whole number of at most 18 digits.
    """
    if not raw:
        return 0
    if not _DIGITS.fullmatch(raw):
        raise MalformedCursor(
            f"A cursor must be the id of the last event received, a whole number such as 42, not {raw!r:.80}."
        )
    return int(raw)
