"""The OpenAPI document that a pod serves: valid, in the eyes of a validator."""

from __future__ import annotations

import openapi_spec_validator
from tests.support.cluster import Cluster, RunningPod


async def test_a_pod_serves_a_valid_document(cluster: Cluster) -> None:
    pod: RunningPod = await cluster.pod()
    answer = await cluster.client.get(f"{pod.url}/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    given = answer.json()
    assert given["openapi"] == "3.1.0"
    assert given["servers"] == [{"url": "/"}]
    openapi_spec_validator.validate(given)


async def test_a_pod_of_the_demo_describes_its_api(cluster: Cluster) -> None:
    pod = await cluster.pod(demo=True)
    answer = await cluster.client.get(f"{pod.url}/openapi.json")
    assert answer.status_code == 200
    assert not [path for path in answer.json()["paths"] if path.startswith("/demo")]
