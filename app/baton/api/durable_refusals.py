"""Why an append was refused, as the protocol's status and headers; pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from ..db.external_appends import AppendRequest, ProducerClaim, Refused, RefusedBecause
from ..dialects.durable_offsets import offset_after
from ..errors import (
    InvalidRequest,
    ProducerFenced,
    ProducerGap,
    RequestError,
    StreamClosed,
    StreamFull,
    StreamNotFound,
    StreamSeqConflict,
    TooManyProducers,
)
from .durable_headers import (
    CLOSED,
    EXPECTED_SEQ,
    NEXT_OFFSET,
    PRODUCER_EPOCH,
    PRODUCER_ID,
    PRODUCER_SEQ,
    RECEIVED_SEQ,
    SEQ,
)

# Only a producer is refused for its epoch or its number.
_UNNAMED: Final = ProducerClaim("", 0, 0)


def refusal(asked: AppendRequest, refused: Refused) -> RequestError:
    """Return the error for an append that was refused."""
    return _MAKERS[refused.because](asked, refused)


def _not_found(asked: AppendRequest, _refused: Refused) -> RequestError:
    return StreamNotFound(f"The stream {asked.stream_id} was deleted.")


def _closed(asked: AppendRequest, refused: Refused) -> RequestError:
    error = StreamClosed(
        f"The stream has ended ({refused.reason or 'closed'}), so nothing can be appended.",
        reason=refused.reason,
    )
    error.headers = {CLOSED: "true", NEXT_OFFSET: offset_after(asked.stream_id, refused.tail)}
    if asked.producer is not None:
        # Without these, the protocol's `IdempotentProducer` takes the 409 for a missing append: it waits for all of its
        # earlier ones, which are there, and repeats this one at once, without end.
        error.headers |= dict.fromkeys((EXPECTED_SEQ, RECEIVED_SEQ), str(asked.producer.seq))
    return error


def _fenced(asked: AppendRequest, refused: Refused) -> RequestError:
    epoch = (asked.producer or _UNNAMED).epoch
    error = ProducerFenced(f"Epoch {epoch} of this producer was replaced by epoch {refused.number}.")
    error.headers = {PRODUCER_EPOCH: str(refused.number)}
    return error


def _gap(asked: AppendRequest, refused: Refused) -> RequestError:
    seq = (asked.producer or _UNNAMED).seq
    error = ProducerGap(f"Append {refused.number} of this producer comes next, not {seq}.")
    error.headers = {EXPECTED_SEQ: str(refused.number), RECEIVED_SEQ: str(seq)}
    return error


def _new_epoch(asked: AppendRequest, _refused: Refused) -> RequestError:
    seq = (asked.producer or _UNNAMED).seq
    return InvalidRequest(f"A new {PRODUCER_EPOCH} begins with {PRODUCER_SEQ} 0, not {seq}.")


def _stream_seq(asked: AppendRequest, _refused: Refused) -> RequestError:
    return StreamSeqConflict(f"{SEQ} {asked.stream_seq!r:.80} does not come after that of the append before.")


def _full(_asked: AppendRequest, _refused: Refused) -> RequestError:
    return StreamFull(
        "The stream has no room for this. Close it, and continue in a new stream.",
        operator="BATON_MAX_EXTERNAL_BYTES is the limit of a stream",
    )


def _too_many(_asked: AppendRequest, _refused: Refused) -> RequestError:
    return TooManyProducers(
        f"The stream has had too many producers. Keep one {PRODUCER_ID}, and raise its {PRODUCER_EPOCH} when the "
        "producer starts again."
    )


_MAKERS: Final[Mapping[RefusedBecause, Callable[[AppendRequest, Refused], RequestError]]] = {
    "not_found": _not_found,
    "closed": _closed,
    "fenced": _fenced,
    "gap": _gap,
    "epoch_must_begin_at_0": _new_epoch,
    "stream_seq": _stream_seq,
    "too_large": _full,
    "too_many_producers": _too_many,
}
