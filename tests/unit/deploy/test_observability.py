"""The alerts, the runbook and the dashboard name existing metrics, and each other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.metric_names import metric_names

from baton.db import partitions
from baton.pod import database_watch

ROOT = Path(__file__).parents[3]
ALERTS = ROOT / "deploy/prometheus/alerts.yaml"
DASHBOARD = ROOT / "deploy/grafana/baton.json"
PROMTOOL = shutil.which("promtool")


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def used(text: str) -> set[str]:
    return set(re.findall(r"\bbaton_[a-z_]+", text))


def test_alerts_and_dashboard_use_existing_metrics() -> None:
    asked = used(" ".join(expressions()) + " ".join(rule["expr"] for rule in rules()))
    assert len(asked) > 20
    assert asked <= metric_names()


def test_every_metric_is_on_the_dashboard() -> None:
    shown = used(" ".join(expressions()))
    stems = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in shown}
    known = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in metric_names()}
    # The number of waiting streams says less than their waiting time.
    assert known - stems <= {"baton_queued_streams", "baton_flush_events"}


def test_panels_use_the_labels_generator_and_model() -> None:
    """A panel that sums over all models does not show a slow model."""
    asked = [expr for expr in expressions() if re.search(r"by \([a-z, ]*\bmodel\b", expr)]
    assert used(" ".join(asked)) == {
        "baton_time_to_first_token_seconds_bucket",
        "baton_usage_tokens_total",
        "baton_streams_ended_total",
        "baton_model_call_failures_total",
    }


def test_alerts_and_runbook_entries_match() -> None:
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE)
    assert headings == [rule["alert"] for rule in rules()]
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in {"warning", "critical"}


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: the alerts' grammar was not checked")
def test_prometheus_accepts_the_alerts() -> None:
    assert PROMTOOL is not None
    said = subprocess.run([PROMTOOL, "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr


def test_the_partitions_alert_log_and_pages_use_the_same_hours() -> None:
    hours = partitions.LEAST_SECONDS // 3600
    assert hours * 3600 == partitions.LEAST_SECONDS
    (rule,) = [rule for rule in rules() if rule["alert"] == "BatonPartitionsEnd"]
    compared = f"- time() < {hours} * 3600"
    assert rule["expr"].endswith(compared)
    database, runbook = [(ROOT / "docs" / page).read_text() for page in ("database.md", "runbook.md")]
    assert f"baton_partitions_end_timestamp_seconds {compared}`" in database
    assert f"Below these {hours} h pods log an error every {database_watch.LOOK_SECONDS} seconds" in database
    assert f"in less than {hours} hours" in runbook.partition("## BatonPartitionsEnd")[2]
