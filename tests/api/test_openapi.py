"""The OpenAPI document: valid, whole, and true. That answers conform to it is seen in test_fuzzing."""

from __future__ import annotations

import json
import re
from typing import Any

import openapi_spec_validator
import pytest
from hypothesis import given
from pydantic import TypeAdapter
from starlette.routing import Route
from tests.cluster import Cluster, RunningPod
from tests.dialects.wire import ANSWERS, encoded

from baton import api
from baton.api.contract import OPERATIONS
from baton.api.event_types import Event
from baton.api.openapi_document import document
from baton.codes import REFUSALS
from baton.events import TYPES

EVENT: TypeAdapter[Any] = TypeAdapter(Event)


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return document(api.ROUTES)


def operations(described: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): found for path, item in described["paths"].items() for method, found in item.items()
    }


async def test_a_pod_gives_a_valid_document(cluster: Cluster) -> None:
    pod: RunningPod = await cluster.pod()
    answer = await cluster.client.get(f"{pod.url}/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    given = answer.json()
    assert given["openapi"] == "3.1.0"
    assert given["servers"] == [{"url": "/"}]
    openapi_spec_validator.validate(given)


def test_each_route_is_in_it_and_nothing_else(described: dict[str, Any]) -> None:
    routes = {
        (method, re.sub(r":\w+}", "}", route.path))
        for route in api.ROUTES
        if isinstance(route, Route) and route.include_in_schema
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert routes == operations(described).keys() == OPERATIONS.keys()


def test_each_operation_is_described(described: dict[str, Any]) -> None:
    names = [found["operationId"] for found in operations(described).values()]
    assert len(names) == len(set(names))
    for found in operations(described).values():
        assert found["summary"].endswith((".", ";")), found
        assert found["responses"]["500"]
        for response in found["responses"].values():
            assert response["description"]
            assert {"x-request-id", "x-baton-pod"} <= response["headers"].keys()


def test_each_code_of_a_request_is_told_of_some_operation(described: dict[str, Any]) -> None:
    told = set(re.findall(r"`(\w+)`: ", json.dumps(described["paths"])))
    # What the router refuses, or what cannot be read as a request, has no operation.
    nowhere = {"method_not_allowed", "bad_request", "header_timeout", "header_too_large", "too_many_connections"}
    assert told == {code.code for code in REFUSALS} - nowhere


def test_errors_have_the_statuses_of_their_classes(described: dict[str, Any]) -> None:
    statuses = {code.code: str(code.status) for code in REFUSALS}
    for found in operations(described).values():
        for status, response in found["responses"].items():
            for code in re.findall(r"`(\w+)`: ", response["description"]):
                assert statuses[code] == status


def test_what_needs_a_credential_says_so(described: dict[str, Any]) -> None:
    open_to_all = {path for (_, path), found in operations(described).items() if not found["security"]}
    assert open_to_all == {"/healthz", "/readyz", "/openapi.json", "/errors", "/console", "/assets/{name}"}
    for found in operations(described).values():
        if found["security"]:
            assert "Needs the scope" in found["description"]
            assert {"401", "403"} <= found["responses"].keys()
            assert all(
                name in described["components"]["securitySchemes"] for item in found["security"] for name in item
            )


@given(ANSWERS)
def test_each_event_of_the_log_is_an_event_of_the_document(answer: list[Any]) -> None:
    for event in answer:
        EVENT.validate_json(encoded(event), strict=True)


def test_all_types_of_events_are_described(described: dict[str, Any]) -> None:
    known = described["components"]["schemas"]["Event"]["discriminator"]["mapping"].keys()
    assert known == TYPES | {"reset", "done", "snapshot", "error"}
