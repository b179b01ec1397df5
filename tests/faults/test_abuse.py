"""Clients that mean no good, beside those that do."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from bench.abuse import ABUSED, run

from baton.demo.embedded import embedded_postgres

MEGABYTE = 1 << 20


@pytest.mark.slow
async def test_clients_that_never_read_or_ask_are_cut_off_at_no_cost_to_others(tmp_path: Path) -> None:
    given = argparse.Namespace(streams=30, rate=20, deaf=40, half_open=200, seconds=10, turns=1)
    with embedded_postgres() as dsn:
        result = await run(dsn, tmp_path, given)
    assert (result.whole, result.measured.wrong) == (30, 0)
    assert result.measured.delays[f"{ABUSED} 1"]
    assert result.fates["half-open"].cut >= 200
    # Those that asked for more than the kernel keeps for a client.
    assert result.metrics['baton_event_streams_closed_total{dialect="native.full",reason="write_timeout"}'] >= 20
    assert result.metrics['baton_rejections_total{limit="header_timeout"}'] >= 100
    assert result.metrics['baton_rejections_total{limit="body_timeout"}'] >= 100
    assert result.highest_memory(ABUSED) - result.highest_memory("calm") < 100 * MEGABYTE
