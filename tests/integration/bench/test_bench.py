"""What a token costs the database in WAL: a count of bytes, that no load of the machine raises."""

from __future__ import annotations

import pytest
from bench.database import full_pages_off, measure

from baton.demo.embedded import embedded_postgres
from baton.settings import Settings


@pytest.mark.slow
async def test_a_token_at_fifty_per_second_costs_few_bytes_of_wal() -> None:
    default = Settings.load().flush_interval_milliseconds
    with embedded_postgres() as dsn:
        await full_pages_off(dsn)
        for window, most in ((default, 140), (200, 60)):
            cost = await measure(dsn, window, count=50, rate=50, seconds=15)
            assert cost.tokens == 50 * 50 * 15 + cost.ends
            assert cost.full_page_images == 0
            assert cost.wal / cost.tokens <= most, cost
