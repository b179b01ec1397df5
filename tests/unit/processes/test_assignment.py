"""What a child of several processes gets to run."""

from __future__ import annotations

import json

import pytest

from baton.processes.assignment import Assignment
from baton.settings import Settings


def test_each_process_has_names_of_its_own_that_stay_when_it_is_replaced() -> None:
    settings = Settings.load(processes=3, pod_name="pod", worker_name="w" * 100)
    found = [Assignment.of(settings, {}, "serve", number) for number in range(3)]
    assert [each.pod_name for each in found] == ["pod-0", "pod-1", "pod-2"]
    assert all(len(each.worker_name) == 100 for each in found)
    assert found == [Assignment.of(settings, {}, "serve", number) for number in range(3)]


def test_a_child_reads_the_settings_and_runs_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PROCESSES": "4", "WORKER_METRICS_PORT": "9", "DRAIN_SECONDS": "7", "POD_NAME": "x"}.items():
        monkeypatch.setenv(f"BATON_{name}", value)
    own = Assignment.of(Settings.load(), {"port": 1}, "serve", 2).settings()
    assert (own.processes, own.port, own.drain_seconds, own.pod_name) == (1, 1, 7, "x-2")
    # The parent serves the metrics of all workers there.
    assert own.worker_metrics_port is None


def test_no_secret_is_an_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_DATABASE_URL", "postgresql://u:verysecret@h/x")
    assignment = Assignment.of(Settings.load(port=5), {"port": 5, "host": None}, "serve", 0)
    text = assignment.encode(3, 4)
    assert "verysecret" not in text
    given = json.loads(text)
    assert (given["channel"], given["listening"]) == (3, 4)
    assert Assignment(**given["assignment"]) == assignment
