"""What Postgres' error codes (SQLSTATE) mean for a request: which failures are temporary."""

from __future__ import annotations

from typing import Final

import asyncpg

# The first two characters of a code are its class. After an error of these classes the same request may succeed later.
_PASSING_CLASSES: Final = (
    "08",  # the connection
    "28",  # the role is gone, or its password was changed
    "3D",  # the database is gone: it is being restored
    "40",  # the transaction lost to another one: serialization, deadlock
    "53",  # no disk, memory or connections left
    "57",  # an operator, a timeout, a server that starts or shuts down
    "58",  # the operating system below Postgres: input and output
)
_PASSING: Final = frozenset(
    {
        "0A000",  # a standby cannot read unlogged tables; a plan was made before a migration
        "23514",  # the log has no partition for the row: `baton maintain` makes it
        "25006",  # the server or the role is read-only
        "25P03",  # idle_in_transaction_session_timeout
        "25P04",  # transaction_timeout
        "55000",  # a standby or a recovering server was asked for what only a primary has
        "55006",  # an object is in use
        "55P03",  # lock_timeout
    }
)
_DISK_FULL: Final = "53100"
# 0A000 has many other causes. Only a standby's message mentions recovery.
_RECOVERY: Final = "during recovery"


def passes(error: BaseException | None) -> bool:
    """Return whether the same request may succeed later."""
    code = _code(error)
    return code[:2] in _PASSING_CLASSES or code in _PASSING


def only_reads(error: BaseException | None) -> bool:
    """Return whether the server takes no writes: it is a standby, or was made read-only."""
    code = _code(error)
    return code in {"25006", "55000"} or (code == "0A000" and _RECOVERY in str(error))


def disk_is_full(error: BaseException | None) -> bool:
    """Return whether the server's disk is full."""
    return _code(error) == _DISK_FULL


def partition_is_missing(error: BaseException | None) -> bool:
    """Return whether the log has no partition for a row. The data is not at fault; `baton maintain` fixes it."""
    return isinstance(error, asyncpg.CheckViolationError) and not error.constraint_name


def _code(error: BaseException | None) -> str:
    return (error.sqlstate or "") if isinstance(error, asyncpg.PostgresError) else ""
