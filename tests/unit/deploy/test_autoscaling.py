"""The examples of autoscaling name what exists: metrics, the workers' Deployment and worker pool, a worker's slots."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.support.manifests import CLOUD_RUN, DEPLOY, KUBERNETES, documents, resources
from tests.support.metric_names import metric_names

from baton.settings import Settings

FILES = {f"{name}": document for name, document in documents(DEPLOY / "autoscaling").items()}
SCALED = [document for document in FILES.values() if document["kind"] == "ScaledObject"]
CREMA = [document for document in FILES.values() if document["kind"] == "CremaConfig"]


def objects() -> list[dict[str, Any]]:
    return [document["spec"] for document in SCALED] + [
        item["spec"] for document in CREMA for item in document["spec"]["scaledObjects"]
    ]


def test_there_is_one_for_each_platform() -> None:
    assert (len(SCALED), len(CREMA)) == (2, 1)
    workers = {document["metadata"]["name"] for document in resources(KUBERNETES).values()}
    assert {document["spec"]["scaleTargetRef"]["name"] for document in SCALED} <= workers
    pools = {d["metadata"]["name"] for d in resources(CLOUD_RUN).values() if d["kind"] == "WorkerPool"}
    (name,) = (spec["scaleTargetRef"]["name"] for spec in objects() if "/" in spec["scaleTargetRef"]["name"])
    assert name.rpartition("/")[2] in pools


@pytest.mark.parametrize("spec", objects(), ids=lambda spec: spec["triggers"][0]["type"])
def test_the_load_of_a_worker_is_below_its_slots(spec: dict[str, Any]) -> None:
    load = spec["triggers"][0]["metadata"]
    target = int(load.get("threshold") or load["targetQueryValue"])
    assert target == 0.8 * Settings().worker_concurrency
    for trigger in spec["triggers"]:
        assert set(re.findall(r"\bbaton_[a-z_]+", trigger["metadata"]["query"])) <= metric_names()
