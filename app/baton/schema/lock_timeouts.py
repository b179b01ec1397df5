"""How long a migration waits for locks. The command line shows the defaults, and imports nothing else for that."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LockTimeouts:
    """How long a statement waits for a lock, and how long a step is retried before the migration gives up.

    A concurrent index build blocks no other session while it waits: it waits up to `give_up_seconds` at a time.
    """

    lock_timeout_milliseconds: int = 500
    give_up_seconds: float = 600
