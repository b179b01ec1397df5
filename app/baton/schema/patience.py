"""For how long a migration bears who is in its way. The command line shows it, and imports nothing else for that."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a statement may wait for a lock, and how long a step is tried, or waits where waiting hurts nobody."""

    lock_timeout_milliseconds: int = 500
    give_up_seconds: float = 600
