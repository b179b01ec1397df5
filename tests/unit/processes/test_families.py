"""The metrics of several processes as one exposition."""

from __future__ import annotations

import json
import math
import re

from prometheus_client.parser import text_string_to_metric_families

from baton.observability.metrics import PodMetrics, WorkerMetrics
from baton.processes.families import collected, merged, rendered, states


def test_each_sample_gets_its_process_and_each_metric_stands_once() -> None:
    pods = [PodMetrics(), PodMetrics()]
    for number, pod in enumerate(pods):
        pod.log_reads = number
        pod.of_dialect("native").events = 7
    # What the processes send is JSON.
    answers = {number: json.loads(json.dumps(collected(pod.registry))) for number, pod in enumerate(pods)}
    found = list(text_string_to_metric_families(rendered(merged(answers)).decode()))
    names = [family.name for family in found]
    assert len(names) == len(set(names))
    by_name = {family.name: family for family in found}
    reads = by_name["baton_log_reads"]
    assert reads.type == "counter"
    assert [(sample.labels, sample.value) for sample in reads.samples] == [({"process": "0"}, 0), ({"process": "1"}, 1)]
    events = by_name["baton_events_sent"].samples
    assert [sample.labels for sample in events] == [{"process": n, "dialect": "native"} for n in "01"]
    delivery = by_name["baton_delivery_seconds"]
    assert {sample.name for sample in delivery.samples} == {
        f"{delivery.name}{part}" for part in ("_bucket", "_sum", "_count")
    }


def test_merging_changes_no_value_and_no_description() -> None:
    worker = WorkerMetrics(8)
    worker.flush_seconds.observe(math.inf)
    alone = rendered(list(worker.registry.collect())).decode()
    merged_alone = rendered(merged({3: json.loads(json.dumps(collected(worker.registry)))})).decode()
    assert re.sub(r'\{process="3"\}|process="3",|,process="3"', "", merged_alone) == alone


def test_a_process_that_does_not_answer_is_down_and_says_nothing_else() -> None:
    pod = PodMetrics()
    pod.of_database("")
    text = rendered([*states({0: True, 1: False}, {0: 0, 1: 4}), *merged({0: collected(pod.registry)})]).decode()
    assert 'baton_process_up{process="1"} 0.0' in text
    assert 'baton_process_replacements_total{process="1"} 4.0' in text
    assert 'baton_log_reads_total{process="0"}' in text
    assert 'baton_log_reads_total{process="1"}' not in text
