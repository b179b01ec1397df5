"""The claim under which a worker writes for a stream."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID


class Fence(NamedTuple):
    """The claim that a stream's row must still have when its worker writes.

    `claim_token` is random. Claims of the previous release have none.
    """

    stream_id: UUID
    epoch: int
    claim_token: UUID | None = None
