"""What all dialects of server-sent events share (WHATWG HTML, 9.2)."""

from __future__ import annotations

from typing import Final

from .protocol import Header

HEADERS: Final[tuple[Header, ...]] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
)

# With one newline: after a blank line, the official OpenAI client would read an event without data.
COMMENT: Final = b":\n"


def retry_block(milliseconds: int) -> bytes:
    """Return a comment, which makes proxies forward the response, and the time after which to reconnect."""
    return b": baton\nretry: %d\n\n" % milliseconds
