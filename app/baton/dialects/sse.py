"""Server-sent events (WHATWG HTML, 9.2): what all dialects that are made of them share."""

from __future__ import annotations

from typing import Final

from .dialect import Header

HEADERS: Final[tuple[Header, ...]] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
)

# With one newline: a blank line would have the official OpenAI client read an event without data.
COMMENT: Final = b":\n"


def retry_block(milliseconds: int) -> bytes:
    """A comment, which opens the way through proxies, and the time after which to reconnect."""
    return b": baton\nretry: %d\n\n" % milliseconds
