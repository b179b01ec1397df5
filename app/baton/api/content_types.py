"""Content types as producers declare them: parsing, comparing, and what each makes of a stream; pure functions."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Final

from ..db.external_streams import Kind
from ..errors import InvalidRequest

# Of JSON whose messages are Baton's events.
EVENTS: Final = 'application/json; profile="urn:baton:events"'
DEFAULT: Final = "application/octet-stream"
MAX_LENGTH: Final = 255

_NAME: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# Many leave out the quotes that a value such as urn:baton:events needs.
_VALUE: Final = r'[!#-+\-./0-:<-~]+|"(?:[ !#-\[\]-~]|\\[ -~])*"'
_TYPE: Final = re.compile(rf"({_NAME}/{_NAME})[ \t]*", re.ASCII)
_PARAMETER: Final = re.compile(rf";[ \t]*(?:({_NAME})=({_VALUE}))?[ \t]*", re.ASCII)
_ESCAPED: Final = re.compile(r"\\(.)")
_EVENTS: Final = ("profile", "urn:baton:events")
# JSON and text have it in any case.
_IMPLIED: Final = ("charset", "utf-8")


@dataclass(frozen=True, slots=True)
class ContentType:
    """A content type in lower case, parameters too. Types that differ only in case, order or quotes are equal."""

    essence: str  # without parameters
    parameters: frozenset[tuple[str, str]] = frozenset()

    @property
    def kind(self) -> Kind:
        """What the messages of a stream with this content type are."""
        if self.essence == "application/json":
            return "events" if _EVENTS in self.parameters else "json"
        return "text" if self.essence.startswith("text/") else "bytes"

    def accepts(self, other: ContentType) -> bool:
        """Whether a body of another type can be appended to a stream of this one.

        A body without parameters can: clients send `application/json` for JSON of any profile.
        """
        return self.essence == other.essence and (not other.parameters or self.parameters == other.parameters)


# Each append has one, and few are different.
@functools.lru_cache(maxsize=256)
def parse(raw: str) -> ContentType:
    """Parse the value of a `Content-Type`.

    Raises:
        InvalidRequest: it is not a content type, is too long, or names a parameter twice.
    """
    text = raw.strip(" \t")
    found = _TYPE.match(text)
    if found is None or len(text) > MAX_LENGTH:
        raise _invalid(raw)
    essence, end = found[1].lower(), found.end()
    parameters: dict[str, str] = {}
    while end < len(text):
        found = _PARAMETER.match(text, end)
        if found is None:
            raise _invalid(raw)
        end = found.end()
        if found[1] is not None:
            name = found[1].lower()
            if name in parameters:
                raise _invalid(raw)
            parameters[name] = _unquoted(found[2]).lower()
    pairs = frozenset(parameters.items())
    implied = essence == "application/json" or essence.startswith("text/")
    return ContentType(essence, pairs - {_IMPLIED} if implied else pairs)


def _unquoted(value: str) -> str:
    return _ESCAPED.sub(r"\1", value[1:-1]) if value.startswith('"') else value


def _invalid(raw: str) -> InvalidRequest:
    return InvalidRequest(
        f"A Content-Type looks like `text/plain` or `application/json; charset=utf-8`, with {MAX_LENGTH} characters at "
        f"most, not {raw!r:.80}."
    )
