"""The OpenAPI document: whole, and true. `test_fuzzing.py` shows that responses conform to it."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from typing import Any

import pytest
from hypothesis import given
from pydantic import TypeAdapter
from starlette.routing import Route
from tests.support.wire import ANSWERS, STREAM_ID, batches, data, encoded, sent, stream

from baton import api
from baton.api.event_types import (
    AgUiEvent,
    CompletionChunk,
    CompletionFailure,
    Event,
    LangGraphEvent,
    MessageEvent,
    ResponseEvent,
    UIMessageChunk,
)
from baton.api.openapi_document import ALTERNATIVES, document
from baton.api.routing import EVENTS, JSON, DeclaredRoute
from baton.codes import ENDS, REFUSALS
from baton.dialects import agui, agui_events, aisdk
from baton.dialects.anthropic import MESSAGES
from baton.dialects.chat import CHAT
from baton.dialects.langgraph import MODES, LangGraph, Run
from baton.dialects.responses import RESPONSES
from baton.events import TYPES

LANGGRAPH = LangGraph(Run(STREAM_ID, "t", "g"), MODES)
EVENT: TypeAdapter[Any] = TypeAdapter(Event)
DIALECTS: list[tuple[Any, Any, Any]] = [
    (CHAT, CHAT.begin(stream(), {"stream_options": {"include_usage": True}}), CompletionChunk | CompletionFailure),
    (RESPONSES, RESPONSES.begin(stream(), {}), ResponseEvent),
    (MESSAGES, MESSAGES.begin(stream(), "whole"), MessageEvent),
    (aisdk.AI_SDK, aisdk.begin(STREAM_ID), UIMessageChunk),
    (LANGGRAPH, LANGGRAPH.begin([]), LangGraphEvent),
    (agui.AG_UI, agui.begin(agui_events.Run("t", "r", STREAM_ID.hex), str(STREAM_ID), b"[]"), AgUiEvent),
]

# Public, and no JSON.
FILES = {"/assets/{name}", "/client.js", "/client/{file}"}


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return document(api.ROUTES)


def operations(described: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): found for path, item in described["paths"].items() for method, found in item.items()
    }


def methods_of(route: Route) -> set[str]:
    """The declared methods: Starlette adds `HEAD` to each `GET`."""
    methods = route.methods or set()
    return methods - {"HEAD"} if "GET" in methods else methods


def test_each_route_of_each_module_is_served() -> None:
    modules = [importlib.import_module(f"baton.api.{found.name}") for found in pkgutil.iter_modules(api.__path__)]
    declared = [route for module in modules for route in getattr(module, "ROUTES", ())]
    assert {id(route) for route in declared} == {id(route) for route in (*api.ROUTES, *api.DEMO_ROUTES)}
    assert all(isinstance(route, DeclaredRoute) for route in declared)


def test_the_document_has_exactly_the_declared_routes(described: dict[str, Any]) -> None:
    routes = {
        (method, re.sub(r":\w+}", "}", route.path))
        for route in api.ROUTES
        if isinstance(route, Route) and route.include_in_schema
        for method in methods_of(route)
    }
    assert routes == operations(described).keys()


def test_each_parameter_in_a_path_is_described(described: dict[str, Any]) -> None:
    for (method, path), found in operations(described).items():
        named = [item["name"] for item in found["parameters"] if item["in"] == "path"]
        assert named == re.findall(r"{(\w+)}", path), (method, path)


def test_each_operation_is_described(described: dict[str, Any]) -> None:
    names = [found["operationId"] for found in operations(described).values()]
    assert len(names) == len(set(names))
    for found in operations(described).values():
        assert found["summary"].endswith((".", ";")), found
        assert found["responses"]["500"]
        for response in found["responses"].values():
            assert response["description"]
            assert {"x-request-id", "x-baton-pod"} <= response["headers"].keys()


def test_each_error_code_is_in_an_operation(described: dict[str, Any]) -> None:
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


def test_operations_that_need_a_credential_declare_it(described: dict[str, Any]) -> None:
    open_to_all = {path for (_, path), found in operations(described).items() if not found["security"]}
    assert open_to_all == {"/healthz", "/readyz", "/openapi.json", "/errors", "/console", *FILES}
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
    assert known == TYPES | {"reset", "waiting", "resumed", "done", "snapshot", "error"}


@given(ANSWERS)
def test_each_frame_of_a_dialect_is_an_event_of_the_document(answer: list[Any]) -> None:
    for dialect, opening, kind in DIALECTS:
        adapter = TypeAdapter(kind)
        for frame in data(sent(dialect, opening, batches(answer))):
            if frame != "[DONE]":
                adapter.validate_python(frame, strict=True)


def schemas_within(part: Any) -> list[dict[str, Any]]:
    if isinstance(part, list):
        return [found for item in part for found in schemas_within(item)]
    return [part, *schemas_within(list(part.values()))] if isinstance(part, dict) else []


def bodies(described: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas of bodies, and all that they refer to."""
    known = described["components"]["schemas"]
    reached: dict[str, dict[str, Any]] = {}
    waiting = [found["requestBody"] for found in operations(described).values() if "requestBody" in found]
    while waiting:
        for schema in schemas_within(waiting.pop()):
            name = schema["$ref"].rpartition("/")[2] if "$ref" in schema else None
            if name and name not in reached:
                reached[name] = known[name]
                waiting.append(known[name])
    return list(reached.values())


def test_optional_body_fields_have_no_default(
    described: dict[str, Any],
) -> None:
    assert described["components"]["schemas"]["CreateStream"]["required"] == ["input"]
    assert len(bodies(described)) > 5
    for body in bodies(described):
        assert not [schema for schema in schemas_within(body["properties"]) if "default" in schema], body


def test_keys_are_described_portably_and_no_field_has_a_title(described: dict[str, Any]) -> None:
    for schema in schemas_within(described["components"]["schemas"]):
        assert "patternProperties" not in schema
        for field in schema.get("properties", {}).values():
            assert not isinstance(field.get("title"), str), schema


def test_all_successful_responses_of_a_route_have_one_type(described: dict[str, Any]) -> None:
    """A client's type is that of all of them together."""
    for (method, path), found in operations(described).items():
        content = [answer.get("content", {}) for status, answer in found["responses"].items() if status < "300"]
        kinds = {json.dumps(media["schema"], sort_keys=True) for media in content for media in media.values()}
        assert len(kinds) <= 1 or path in FILES, (method, path, kinds)
        assert len({name for media in content for name in media}) <= 1 or path in FILES, (method, path)
    assert "204" not in described["paths"]["/v1/streams"]["post"]["responses"]


def test_responses_of_another_form_are_in_the_alternatives(described: dict[str, Any]) -> None:
    found = {
        (key, alternative["with"], media)
        for key, operation in operations(described).items()
        for alternative in operation.get(ALTERNATIVES, [])
        for answer in alternative["responses"].values()
        for media in answer.get("content", {})
    }
    assert found == {
        (("POST", "/v1/streams"), "Accept: text/event-stream", EVENTS),
        (("POST", "/v1/streams"), "Accept: text/plain", "text/plain"),
        (("GET", "/v1/streams/{id}/events"), "Accept: text/plain", "text/plain"),
        (("POST", "/v1/responses"), '"stream": true', EVENTS),
        (("GET", "/v1/responses/{id}"), "stream=true", EVENTS),
        (("POST", "/v1/chat/completions"), '"stream": true', EVENTS),
        (("POST", "/v1/messages"), '"stream": true', EVENTS),
        (("GET", "/v1/models"), "anthropic-version: …", JSON),
        (("GET", "/v1/models/{name}"), "anthropic-version: …", JSON),
        (("GET", "/v1/stream/{path}"), "live=sse", EVENTS),
        (("GET", "/v1/stream/{path}"), "a stream of text or bytes", "*/*"),
    }


def test_each_stream_of_events_has_the_type_of_its_data(described: dict[str, Any]) -> None:
    # The data of the Durable Streams protocol is as various as the content of streams.
    paths = {path: item for path, item in described["paths"].items() if path != "/v1/stream/{path}"}
    streams = [schema[EVENTS]["schema"] for schema in schemas_within(paths) if EVENTS in schema]
    assert len(streams) == 13
    for schema in streams:
        assert all("$ref" in kind for kind in schema.get("anyOf", [schema])), schema
    follow = described["paths"]["/v1/streams/{id}/events"]["get"]["responses"]["200"]
    assert follow["content"][EVENTS]["schema"] == {"$ref": "#/components/schemas/Event"}


def test_error_codes_are_enumerated(described: dict[str, Any]) -> None:
    schemas = described["components"]["schemas"]
    # An append to a stream that was cancelled is refused with the code of its end.
    codes = [{"$ref": f"#/components/schemas/{name}"} for name in ("RefusalCode", "EndCode")]
    assert schemas["Problem"]["properties"]["code"] == {"anyOf": codes}
    assert schemas["RefusalCode"]["enum"] == [code.code for code in REFUSALS]
    # A generator may have codes of its own.
    assert schemas["StreamError"]["properties"]["code"]["anyOf"][0] == {"$ref": "#/components/schemas/EndCode"}
    assert schemas["EndCode"]["enum"] == [code.code for code in ENDS]


def test_an_optional_body_is_not_required(described: dict[str, Any]) -> None:
    required = {
        key: found["requestBody"].get("required")
        for key, found in operations(described).items()
        if "requestBody" in found
    }
    optional = {
        ("POST", "/v1/streams/{id}/token"),
        ("PUT", "/v1/stream/{path}"),
        ("POST", "/v1/stream/{path}"),
        ("POST", "/v1/conversations"),
        ("POST", "/v1/langgraph/assistants/search"),
        ("POST", "/v1/langgraph/threads"),
        ("POST", "/v1/langgraph/threads/{thread}/history"),
        ("POST", "/v1/ag-ui/{generator}/runs/{run}/connect"),
    }
    assert {key for key, needed in required.items() if not needed} == optional


def test_parameters_keep_all_their_types(described: dict[str, Any]) -> None:
    def schema(path: str, name: str) -> Any:
        (found,) = [item for item in described["paths"][path]["get"]["parameters"] if item["name"] == name]
        return found

    assert "live" in json.dumps(schema("/console/streams", "status"))
    assert schema("/v1/ai-sdk/chat/{chat}/stream", "startIndex")["schema"]["type"] == "integer"
    # The form in which the clients of most generators write any object.
    assert schema("/v1/streams", "metadata")["style"] == "deepObject"


def test_parameter_names_stay_distinct_in_generated_code(described: dict[str, Any]) -> None:
    for found in operations(described).values():
        names = [(item["in"], re.sub(r"[-_]", "", item["name"]).lower()) for item in found["parameters"]]
        assert len(names) == len(set(names)), found["operationId"]


def test_a_temporary_error_has_a_time_to_retry(described: dict[str, Any]) -> None:
    for found in operations(described).values():
        for status in found["responses"].keys() & {"429", "503"}:
            passing = "`" in found["responses"][status]["description"]
            assert not passing or "retry-after" in found["responses"][status]["headers"], found["operationId"]


def test_no_status_names_a_code_twice(described: dict[str, Any]) -> None:
    for found in operations(described).values():
        for response in found["responses"].values():
            codes = re.findall(r"`(\w+)`: ", response["description"])
            assert len(codes) == len(set(codes))
