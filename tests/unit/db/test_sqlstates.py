"""Which of Postgres' errors are temporary."""

from __future__ import annotations

import asyncpg
import pytest

from baton.db import sqlstates
from baton.db.fair_pool import FairPool
from baton.db.postgres import translated
from baton.errors import Unavailable

LATER = (
    *("08000", "08001", "08003", "08004", "08006", "08007", "08P01"),
    *("0A000", "23514", "25006", "25P03", "25P04", "28000", "28P01", "3D000"),
    *("40000", "40001", "40003", "40P01"),
    *("53000", "53100", "53200", "53300", "53400", "55000", "55006", "55P03"),
    *("57000", "57014", "57P01", "57P02", "57P03", "57P04", "57P05"),
    *("58000", "58030", "58P01", "58P02"),
)
NEVER = ("22001", "22P02", "23505", "42501", "42601", "42703", "42P01", "54000", "XX000")


def postgres_error(code: str, message: str = "no") -> asyncpg.PostgresError:
    """What asyncpg raises for an answer of the server."""
    error: asyncpg.PostgresError = asyncpg.PostgresError.new({"C": code, "M": message, "S": "ERROR"})
    assert error.sqlstate == code
    return error


@pytest.fixture
def pool() -> FairPool:
    """A pool that is never asked for a connection."""
    return FairPool.__new__(FairPool)


@pytest.mark.parametrize("code", LATER)
async def test_temporary_errors_become_503(pool: FairPool, code: str) -> None:
    assert sqlstates.passes(postgres_error(code))
    with pytest.raises(Unavailable) as caught:
        async with translated(pool, 1):
            raise postgres_error(code)
    assert caught.value.retry_after_seconds >= 1
    assert ("disk is full" in (caught.value.operator or "")) == (code == "53100")


@pytest.mark.parametrize("code", NEVER)
async def test_other_errors_are_raised_unchanged(pool: FairPool, code: str) -> None:
    assert not sqlstates.passes(postgres_error(code))
    with pytest.raises(asyncpg.PostgresError):
        async with translated(pool, 1):
            raise postgres_error(code)


@pytest.mark.parametrize(
    ("code", "message", "reads"),
    [
        ("25006", "cannot execute INSERT in a read-only transaction", True),
        ("0A000", "cannot access temporary or unlogged relations during recovery", True),
        ("55000", "this server is a standby", True),
        ("0A000", "cached plan must not change result type", False),
        ("57P01", "terminating connection due to administrator command", False),
    ],
)
def test_a_read_only_server_is_recognized(code: str, message: str, reads: bool) -> None:
    assert sqlstates.only_reads(postgres_error(code, message)) == reads
    assert not sqlstates.only_reads(ValueError())
