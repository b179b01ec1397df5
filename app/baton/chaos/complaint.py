"""What an account complains of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Complaint:
    """One violation. `kind` is a word or two for the report; `seq` is the event at which it was seen."""

    kind: str
    seq: int
    detail: str
