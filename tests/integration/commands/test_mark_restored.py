"""`baton mark-restored` and `baton keys rotate-notify`, as an operator calls them."""

from __future__ import annotations

from tests.support.logbook import connected, queue
from tests.support.processes import environment, finished

from baton.db import history, signing_keys


async def test_live_streams_are_marked_and_counted(dsn: str) -> None:
    await queue(dsn)
    code, out, err = await finished("mark-restored", env=environment(BATON_DATABASE_URL=dsn))
    assert code == 0, err
    assert out.startswith("Marked as restored. 1 streams were queued or running.")
    code, out, err = await finished("mark-restored", "--nothing-lost", env=environment(BATON_DATABASE_URL=dsn))
    assert code == 0, err
    assert out == "1 queued or running streams of an older history continue in this one.\n"


async def test_the_signing_key_is_replaced(dsn: str) -> None:
    async with connected(dsn) as connection:
        now = await history.read(connection)
        (before,) = (await signing_keys.read(connection, now)).secrets
        code, out, err = await finished("keys", "rotate-notify", env=environment(BATON_DATABASE_URL=dsn))
        assert code == 0, err
        assert out == f"Created key {before + 1}. The previous key becomes invalid in 80 s.\n"
        assert set((await signing_keys.read(connection, now)).secrets) == {before, before + 1}
