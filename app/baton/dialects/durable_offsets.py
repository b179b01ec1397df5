"""Places in a stream, as the Durable Streams protocol writes them: `<12 hex digits>_<10 digits>`; pure functions.

The digits behind the line are the number of the last event that the client has, so that offsets of a stream sort as
strings. The hex digits are the time in the stream's id. So an offset of a stream that was deleted never names a place
in a later stream at the same path.
"""

from __future__ import annotations

import re
from typing import Final
from uuid import UUID

from ..errors import InvalidRequest, OffsetGone

# Reserved by the protocol: the beginning, and the end so far.
BEGINNING: Final = "-1"
NOW: Final = "now"

_PREFIX_DIGITS: Final = 12
PATTERN: Final = r"-1|now|[0-9a-f]{12}_[0-9]{10}"
_OFFSET: Final = re.compile(PATTERN, re.ASCII)


def prefix_of(stream_id: UUID) -> str:
    """Return what all offsets of a stream begin with."""
    return stream_id.hex[:_PREFIX_DIGITS] + "_"


def offset_after(stream_id: UUID, number: int) -> str:
    """Return the offset after an event; after number 0 it is the offset of the first one."""
    return f"{prefix_of(stream_id)}{number:010d}"


def number_in(offset: str, stream_id: UUID) -> int | None:
    """Return the number of the last event that a client with this offset has; None for `now`.

    Raises:
        InvalidRequest: it is not an offset.
        OffsetGone: it is an offset of another stream.
    """
    if not _OFFSET.fullmatch(offset):
        raise InvalidRequest(f"An offset is the value of a Stream-Next-Offset, -1 or now, not {offset!r:.80}.")
    if offset == NOW:
        return None
    if offset == BEGINNING:
        return 0
    prefix = prefix_of(stream_id)
    if not offset.startswith(prefix):
        raise OffsetGone("The offset is of another stream, which this address had before. Read from the beginning.")
    return int(offset.removeprefix(prefix))
