"""How many processes `auto` means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from baton import cores

ALL = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, ALL),
        ({"cpu.max": "max 100000\n"}, ALL),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "101000 100000\n"}, min(2, ALL)),
        ({"cpu.max": "99999999 100000\n"}, ALL),
        ({"cpu.max": "nonsense\n"}, ALL),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, ALL),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
    ],
    ids=["no group", "no limit", "half", "one", "a bit more", "a hundred", "nonsense", "no limit, v1", "one, v1"],
)
def test_a_containers_limit_counts_if_it_is_lower(tmp_path: Path, files: dict[str, str], found: int) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cores.available(tmp_path) == found
