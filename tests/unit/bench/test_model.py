"""The arithmetic of the model: what a load takes, and the smallest layout that carries it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench.costs import MEASURED, Costs, Measured, Parts, solved
from bench.model import (
    PAGE,
    Assumptions,
    DoesNotFit,
    Layout,
    cpu,
    described,
    dollars_per_million_tokens,
    most_viewers,
    rows_of,
    sized,
    written,
)
from bench.steady import Load

NOTHING = Parts(0, 0, 0)
ROUND = Costs(
    token=Parts(1, 0, 0),
    row=Parts(10, 5, 20),
    flush=Parts(1000, 500, 100),
    life=Parts(2000, 3000, 4000),
    heard=Parts(0, 1, 3),
    viewer=10,
    idle=Parts(0.01, 0.02, 0.03),
    timer=0.04,
    rows_per_second=20,
)


def test_a_stream_makes_a_row_for_each_token_or_for_each_flush() -> None:
    assert rows_of(ROUND, 5, 40) == 5
    assert rows_of(ROUND, 50, 40) == 20
    assert rows_of(ROUND, 50, 200) == 4


def test_a_load_on_one_of_each_takes_what_its_parts_cost() -> None:
    # 5,000 tokens, 2,000 rows, 20 flushes and 10 lives a second.
    found = cpu(ROUND, Load(100, 50, life_seconds=10), Layout(1, 1, 1))
    assert found.worker == pytest.approx(0.005 + 0.02 + 0.02 + 0.02 + 0.01 + 0.04)
    assert found.postgres == pytest.approx(0.01 + 0.01 + 0.03 + 0.02)
    assert found.pod == pytest.approx(0.04 + 0.002 + 0.04 + 0.03)


def test_each_pod_hears_every_row_unless_hints_go_to_those_that_follow() -> None:
    load = Load(100, 50)
    one, four = (cpu(ROUND, load, Layout(1, 1, pods)) for pods in (1, 4))
    assert four.pod - one.pod == pytest.approx(3 * (2000 * 3e-6 + 20 * 100e-6 + 0.03))
    assert four.postgres - one.postgres == pytest.approx(3 * 2000 * 1e-6)
    one, four = (cpu(ROUND, load, Layout(1, 1, pods), hint=2) for pods in (1, 4))
    assert four.pod - one.pod == pytest.approx(3 * 0.03)
    assert four.postgres == one.postgres


def test_a_worker_flushes_into_each_of_its_databases() -> None:
    load = Load(1000, 50)
    all_of_them = cpu(ROUND, load, Layout(4, 4, 1))
    one_each = cpu(ROUND, load, Layout(4, 4, 1), served=1)
    assert all_of_them.postgres - one_each.postgres == pytest.approx((16 - 4) * 20 * 500e-6)


def test_few_streams_make_no_more_flushes_than_rows() -> None:
    alone = cpu(replace(ROUND, idle=NOTHING, timer=0), Load(1, 1, life_seconds=1e9), Layout(4, 1, 1))
    assert alone.worker == pytest.approx((1 + 10 + 1000) * 1e-6)


def test_a_further_viewer_costs_a_write_and_nothing_else() -> None:
    one, two = (cpu(ROUND, Load(10, 50, viewers=viewers), Layout(1, 1, 1)) for viewers in (1, 2))
    assert two.pod - one.pod == pytest.approx(200 * 10e-6)
    assert (two.worker, two.postgres) == (one.worker, one.postgres)


@pytest.mark.parametrize("viewers", [1_000, 100_000, 1_000_000])
def test_no_process_of_the_smallest_layout_is_used_more_than_allowed(viewers: int) -> None:
    given = Assumptions(viewers=viewers)
    found = sized(MEASURED, given)
    layout, cores = found.layout, found.cores
    assert cores.worker <= layout.workers * given.used
    assert cores.postgres <= layout.databases * given.database_cores * given.used
    assert cores.pod <= layout.pods * given.used
    assert viewers <= layout.pods * given.clients


def test_what_every_pod_hears_can_be_more_than_any_number_of_pods_carries() -> None:
    with pytest.raises(DoesNotFit):
        sized(MEASURED, Assumptions(hints="postgres"))
    assert "does not fit" in "\n".join(described(MEASURED, Assumptions(hints="postgres")))


def test_the_most_viewers_fit_and_no_more_do() -> None:
    given = Assumptions(hints="postgres")
    most = most_viewers(MEASURED, given)
    sized(MEASURED, replace(given, viewers=most))
    with pytest.raises(DoesNotFit):
        sized(MEASURED, replace(given, viewers=most + 10_000))


def test_faster_cores_and_wider_windows_need_fewer_machines() -> None:
    slow, fast, wide = (
        sized(MEASURED, given) for given in (Assumptions(), Assumptions(speed=3), Assumptions(window=200))
    )
    assert fast.layout.workers < slow.layout.workers
    assert wide.cores.total < slow.cores.total


def test_money_is_what_the_machines_cost_for_the_tokens_of_an_hour() -> None:
    given = Assumptions(viewers=1000, reading=1, rate=1000, hints="postgres", database_price=3.6, core_price=0)
    # A million tokens a second.
    assert dollars_per_million_tokens(given, sized(ROUND, given)) == pytest.approx(
        sized(ROUND, given).layout.databases * 3.6 / 3600
    )


def test_runs_that_differ_in_one_thing_give_its_cost() -> None:
    """Loads that are computed from known costs give these costs back."""

    def run(tokens: float, rows: float, *, starts: float = 0, viewers: int = 1, pods: int = 1, of: int = 1) -> Measured:
        spent = ROUND.token * tokens + ROUND.row * rows + ROUND.life * starts
        spent += Parts(ROUND.flush.worker, ROUND.flush.postgres, ROUND.flush.pod * pods) * (20 * of)
        spent += Parts(0, 0, ROUND.viewer * (viewers - 1) * rows) + ROUND.heard * (rows * (pods - 1))
        standing = Parts(ROUND.idle.worker * of + ROUND.timer, ROUND.idle.postgres * of, ROUND.idle.pod * of * pods)
        return Measured(tokens, rows, starts, spent + standing * 1e6)

    timer = Measured(0, 0, 0, Parts((ROUND.idle.worker + ROUND.timer) * 1e6, 0, 0))
    runs = {
        "many": run(15_000, 6_000),
        "slow": run(3_000, 3_000),
        "spread": run(3_000, 3_000, of=4),
        "lives": run(15_000, 6_000, starts=15),
        "watched": run(200, 20, viewers=500),
        "pods": run(15_000, 6_000, pods=8),
        "timer": timer,
    }
    found = solved(runs, ROUND.idle * 1e6, 500, 8)
    for name in ("row", "life", "heard"):
        for part in ("worker", "postgres", "pod"):
            assert getattr(getattr(found, name), part) == pytest.approx(
                getattr(getattr(ROUND, name), part), rel=1e-6
            ), (
                name,
                part,
            )
    assert found.flush.worker == pytest.approx(ROUND.flush.worker, rel=1e-6)
    assert found.viewer == pytest.approx(ROUND.viewer, rel=1e-6)
    assert found.timer == pytest.approx(ROUND.timer)
    assert found.rows_per_second == 20


def test_the_page_has_what_the_model_says_now() -> None:
    """Renew it by `python -m bench.model --write`."""
    page = PAGE.read_text()
    assert page == written(page, MEASURED)
