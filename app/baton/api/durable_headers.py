"""The headers of the Durable Streams protocol in requests that write: their names and their values; pure functions.

Numbers are strict: no sign, no fraction, no exponent, as the protocol's clients and other servers have them.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final, NamedTuple

from ..db.external_appends import ProducerClaim
from ..errors import InvalidRequest

CLOSED: Final = "Stream-Closed"
# Not of the protocol: what other APIs call the stream.
STREAM_ID: Final = "X-Baton-Stream-Id"
NEXT_OFFSET: Final = "Stream-Next-Offset"
SEQ: Final = "Stream-Seq"
TTL: Final = "Stream-TTL"
EXPIRES_AT: Final = "Stream-Expires-At"
PRODUCER_ID: Final = "Producer-Id"
PRODUCER_EPOCH: Final = "Producer-Epoch"
PRODUCER_SEQ: Final = "Producer-Seq"
EXPECTED_SEQ: Final = "Producer-Expected-Seq"
RECEIVED_SEQ: Final = "Producer-Received-Seq"
FORK_HEADERS: Final = ("Stream-Forked-From", "Stream-Fork-Offset", "Stream-Fork-Sub-Offset")

# The largest number that a client in JavaScript counts exactly.
MAX_NUMBER: Final = 2**53 - 1
# A hundred years. Postgres has no dates that are much later.
MAX_TTL_SECONDS: Final = 100 * 366 * 86_400
MAX_NAME_LENGTH: Final = 255

_TTL: Final = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,16}", re.ASCII)
# RFC 3339. A leap second, which few clocks know, is not accepted.
_TIME: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})", re.ASCII
)


class Lifetime(NamedTuple):
    """How long a stream is kept: seconds after its last use, or until a time, or as long as any other."""

    ttl_seconds: int | None = None
    expires_at: datetime | None = None


def lifetime(ttl: str | None, expires_at: str | None) -> Lifetime:
    """Read `Stream-TTL` and `Stream-Expires-At`.

    Raises:
        InvalidRequest: both are given, or one is malformed or out of range.
    """
    if ttl is not None and expires_at is not None:
        raise InvalidRequest(f"Send {TTL} or {EXPIRES_AT}, not both.")
    return Lifetime(None if ttl is None else _ttl_seconds(ttl), None if expires_at is None else _moment(expires_at))


def claim(producer_id: str | None, epoch: str | None, seq: str | None) -> ProducerClaim | None:
    """Read the headers of a producer; None without any.

    Raises:
        InvalidRequest: one of them is missing or malformed.
    """
    if producer_id is None and epoch is None and seq is None:
        return None
    if producer_id is None or epoch is None or seq is None:
        raise InvalidRequest(f"Send {PRODUCER_ID}, {PRODUCER_EPOCH} and {PRODUCER_SEQ} together, or none of them.")
    if not 0 < len(producer_id) <= MAX_NAME_LENGTH:
        raise InvalidRequest(f"A {PRODUCER_ID} has 1 to {MAX_NAME_LENGTH} characters.")
    return ProducerClaim(producer_id, _number(PRODUCER_EPOCH, epoch), _number(PRODUCER_SEQ, seq))


def stream_seq(raw: str | None) -> str | None:
    """Read `Stream-Seq`. The text has one character for each byte of the header.

    Raises:
        InvalidRequest: it is empty or too long.
    """
    if raw is not None and not 0 < len(raw) <= MAX_NAME_LENGTH:
        raise InvalidRequest(f"A {SEQ} has 1 to {MAX_NAME_LENGTH} characters.")
    return raw


def closes(raw: str | None) -> bool:
    """Whether `Stream-Closed` closes the stream. By the protocol, any value but `true` means that it is absent."""
    return raw is not None and raw.strip().lower() == "true"


def require_plain(content_encoding: str | None) -> None:
    """Refuse a compressed body: it would be stored as it is, and readers would get it without this header.

    Raises:
        InvalidRequest: it is compressed, or encoded in another way.
    """
    if (content_encoding or "").strip().lower() not in {"", "identity"}:
        raise InvalidRequest(f"Send the body as it is, without the Content-Encoding {content_encoding!r:.80}.")


def _ttl_seconds(raw: str) -> int:
    if not _TTL.fullmatch(raw) or int(raw) > MAX_TTL_SECONDS:
        raise InvalidRequest(f"{TTL} must be a whole number of seconds, at most {MAX_TTL_SECONDS}, not {raw!r:.80}.")
    return int(raw)


def _moment(raw: str) -> datetime:
    try:
        if not _TIME.fullmatch(raw):
            raise ValueError(raw)
        return datetime.fromisoformat(raw.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"{EXPIRES_AT} must be a time as in RFC 3339, such as 2030-01-31T12:00:00Z, not {raw!r:.80}."
        ) from None


def _number(name: str, raw: str) -> int:
    if not _NUMBER.fullmatch(raw) or int(raw) > MAX_NUMBER:
        raise InvalidRequest(f"{name} must be a whole number from 0 to {MAX_NUMBER}, not {raw!r:.80}.")
    return int(raw)
