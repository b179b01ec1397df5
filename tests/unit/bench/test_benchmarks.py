"""The report of a run, made from what was recorded, and what is measured in which order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from bench.__main__ import PEERS, plan
from bench.cluster import ROOT
from bench.peers.bare import Bare
from bench.peers.baton import Baton
from bench.plots import DRAWS
from bench.record import Record
from bench.report import BEGIN, END, write_report, write_tables
from bench.workloads import all_workloads, quick_workloads

MACHINE = {
    "day": "2026-11-21",
    "processor": "a processor",
    "cores": 2,
    "memory_gigabytes": 8,
    "system": "Linux",
    "python": "3.11",
    "python_additions_per_second": 9e6,
    "commit": "abc",
    "load_before": 0.1,
    "postgres": {"fsync": "on"},
    "baton": {"flush_interval_milliseconds": 40},
}


def steady(cost: float, *, carried: float = 1.0, gaps: int = 0) -> dict[str, Any]:
    return {
        "rate": 15_000 * carried,
        "carried": carried,
        "cpu_us": cost,
        "parts_us": {"pod": cost / 2, "worker": cost / 2},
        "p50_ms": 20.0,
        "p99_ms": 45.0 / carried**5,
        "all_events": 1000,
        "gaps": gaps,
        "repeats": 0,
        "lost": 0,
        "failed": 0,
    }


@pytest.fixture
def record() -> Record:
    record = Record(MACHINE, {"seconds": 3.0, "turns": 3})
    record.peers = {name: {"keeps": name == "Baton", "versions": {name: "1"}} for name in ("Baton", "Other", "Broken")}
    record.missing = {"Absent": "Only root can install packages."}
    for turn, cost in enumerate((12.0, 10.0, 19.0)):
        record.add("w1", "W1: streams", "Baton", turn, steady(cost))
        record.add("w1", "W1: streams", "Other", turn, steady(cost * 2, carried=0.5, gaps=turn))
        record.add("w1", "W1: streams", "Broken", turn, {"error": "RuntimeError: it fell\nover"})
        record.add("w9.pods.1", "W9: W1 with 1 pods", "Baton", turn, steady(cost))
        record.add("w9.pods.16", "W9: W1 with 16 pods", "Baton", turn, steady(cost + 1))
    record.add("w4", "W4: replay", "Baton", 0, {"seconds": 0.5, "reads_of_a_batch": 1.25})
    record.add("w4", "W4: replay", "Other", 0, {"seconds": 7.0, "missed_by": 3})
    record.add("w5", "W5: storm", "Baton", 0, {"seconds": 1.5, "reads_per_stream": 2.0})
    record.add("w7", "W7: first", "Baton", 0, {"p50_ms": 4.0, "p99_ms": 1500.0})
    record.add("w8", "W8: idle", "Baton", 0, {"kibibytes": 12.3})
    record.add("highest", "highest rate", "Baton", 0, {"streams": 10, "rate": 100_000.0})
    return record


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_a_report_is_built_from_the_records(record: Record, tmp_path: Path) -> None:
    record.write(tmp_path)
    write_tables(Record.read(tmp_path), tmp_path, ["growth.svg"])
    text = (tmp_path / "table.md").read_text()
    found = rows(text)
    assert "| Baton | 12.0 (10.0 to 19.0) µs, p50 20 ms, p99 45 ms |" in found
    assert "| Other | 24.0 (20.0 to 38.0) µs, p50 20 ms, p99 1.4 s; saturated at 7,500/s |" in found
    assert "| Broken | failed: RuntimeError: it fell |" in found
    assert "| Baton | pod 6.0, worker 6.0 |" in found
    replay, storm, first = "0.50 s; each batch read 1.2 times", "1.50 s; 2.0 reads of a stream", "p50 4 ms, p99 1.5 s"
    assert f"| Baton | {replay} | {storm} | {first} | 12.3 KiB | 100,000/s |" in found
    assert "| Other | 7.00 s; 3 clients were cut off | n/a | n/a | n/a | n/a |" in found
    assert "| W9: W1 with 16 pods | 13.0 (11.0 to 20.0) µs | 45 ms | 100% |" in found
    assert "| Other | 3,000 | 3 | 0 | 0 | 0 |" in found
    assert "- Absent: not run. Only root can install packages." in text
    assert "a processor, 2 cores" in text
    assert "![growth](growth.svg)" in text


def test_a_report_replaces_the_last_one(record: Record, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# Above\n\n{BEGIN}\n\nold\n\n{END}\n\nbelow\n")
    for _ in range(2):
        write_tables(record, tmp_path, [])
        page = readme.read_text()
        assert page.startswith(f"# Above\n\n{BEGIN}\n\n2026-11-21, commit abc")
        assert page.endswith(f"{END}\n\nbelow\n")
        assert "old" not in page
        assert page.count("| Baton | pod 6.0") == 1


def test_the_page_has_a_place_for_results() -> None:
    page = (ROOT / "docs" / "benchmarks" / "README.md").read_text()
    assert page.index(BEGIN) < page.index(END)


@pytest.mark.skipif(not DRAWS, reason="matplotlib is not installed (`make bench` does): plots were not tried.")
def test_plots_show_every_system(record: Record, tmp_path: Path) -> None:
    write_report(record, tmp_path)
    drawn = {path.name: path.read_text() for path in tmp_path.glob("*.svg")}
    assert set(drawn) == {"cpu-of-an-event.svg", "p99-of-the-delay.svg", "growth.svg"}
    for name, text in drawn.items():
        assert ElementTree.fromstring(text).tag.endswith("svg")
        assert f"({name})" in (tmp_path / "table.md").read_text()
    assert {"Baton", "Other"} <= set(re.findall(r">([A-Z]\w+)<", drawn["cpu-of-an-event.svg"]))


def test_what_needs_no_installation_says_its_version() -> None:
    for peer in (Baton(), Bare()):
        assert all(peer.versions().values())


def test_all_systems_take_turns() -> None:
    peers, workloads = list(PEERS), all_workloads(1)
    steps = plan(workloads, peers, turns=3)
    assert [peer for turn, workload, peer in steps if workload.key == "w1" and turn == 1] == peers[1:] + peers[:1]
    assert {workload.key for _, workload, _ in steps} == {workload.key for workload in workloads}
    assert {turn for turn, workload, _ in steps if workload.key == "highest"} == {0}
    assert {workload.key for workload in quick_workloads(1)} < {workload.key for workload in workloads}
