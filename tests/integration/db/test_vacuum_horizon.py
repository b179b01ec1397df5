"""Which sessions hold vacuum's horizon back, and for how long: a role with the least rights can see it."""

from __future__ import annotations

import pytest
from tests.support.logbook import connected
from tests.support.roles import granted

from baton.db.vacuum_horizon import WARN_SECONDS, HorizonWatch

OLD = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1"


async def test_a_pods_role_sees_the_age_and_owner_of_a_snapshot(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    clock = 0.0
    watch = HorizonWatch(clock=lambda: clock)
    async with granted(dsn) as roles, connected(roles.serve_dsn) as connection, connected(dsn) as old:
        await old.execute("SET application_name = 'nightly dump'")
        assert await watch.check(connection) == 0
        await old.execute(OLD)
        for clock in (0.0, 15.0, WARN_SECONDS, WARN_SECONDS + 15):
            assert await watch.check(connection) == clock
        (message,) = (record.getMessage() for record in caplog.records)
        assert f"pid {old.get_server_pid()} (" in message
        assert "nightly dump" in message
        await old.execute("COMMIT")
        assert await watch.check(connection) == 0


async def test_a_new_snapshot_of_the_same_session_counts_separately(dsn: str) -> None:
    clock = 0.0
    watch = HorizonWatch(clock=lambda: clock)
    async with connected(dsn) as connection, connected(dsn) as old:
        await old.execute(OLD)
        await watch.check(connection)
        await old.execute("COMMIT")
        await connection.execute("SELECT pg_current_xact_id()")
        await old.execute(OLD)
        clock = 100.0
        assert await watch.check(connection) == 0


async def test_a_transaction_that_has_written_holds_vacuum_back(dsn: str) -> None:
    clock = 0.0
    watch = HorizonWatch(clock=lambda: clock)
    async with connected(dsn) as connection, connected(dsn) as old:
        await old.execute("BEGIN; SELECT pg_current_xact_id()")
        await watch.check(connection)
        clock = 100.0
        assert await watch.check(connection) == 100
