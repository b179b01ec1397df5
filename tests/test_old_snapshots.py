"""Which sessions hold vacuum back, and for how long: the role with the least rights can see it."""

from __future__ import annotations

import pytest
from tests.logbook import connected
from tests.roles import granted

from baton.db.old_snapshots import WARN_SECONDS, SnapshotWatch

OLD = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1"


async def test_a_pods_role_sees_for_how_long_a_snapshot_is_open_and_whose_it_is(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = 0.0
    watch = SnapshotWatch(clock=lambda: clock)
    async with granted(dsn) as roles, connected(roles.serve_dsn) as connection, connected(dsn) as old:
        await old.execute("SET application_name = 'nightly dump'")
        assert await watch.look(connection) == 0
        await old.execute(OLD)
        for clock in (0.0, 15.0, WARN_SECONDS, WARN_SECONDS + 15):
            assert await watch.look(connection) == clock
        (message,) = (record.getMessage() for record in caplog.records)
        assert f"pid {old.get_server_pid()} (" in message
        assert "nightly dump" in message
        await old.execute("COMMIT")
        assert await watch.look(connection) == 0


async def test_another_snapshot_of_the_same_session_is_another(dsn: str) -> None:
    clock = 0.0
    watch = SnapshotWatch(clock=lambda: clock)
    async with connected(dsn) as connection, connected(dsn) as old:
        await old.execute(OLD)
        await watch.look(connection)
        await old.execute("COMMIT")
        await connection.execute("SELECT pg_current_xact_id()")
        await old.execute(OLD)
        clock = 100.0
        assert await watch.look(connection) == 0


async def test_a_transaction_that_has_written_holds_back_too(dsn: str) -> None:
    clock = 0.0
    watch = SnapshotWatch(clock=lambda: clock)
    async with connected(dsn) as connection, connected(dsn) as old:
        await old.execute("BEGIN; SELECT pg_current_xact_id()")
        await watch.look(connection)
        clock = 100.0
        assert await watch.look(connection) == 100
