"""The OpenAPI 3.1 document of a pod: made once, of the routes, the models of requests and the types of answers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final, TypeAlias

from pydantic import BaseModel, TypeAdapter
from starlette.routing import BaseRoute, Route

from .. import __version__, problems
from ..auth import credentials
from ..errors import RequestError
from ..events import STREAM_ID
from .contract import EVENTS, JSON, OPERATIONS, Form, Given, Operation
from .event_types import Event
from .openai import ErrorAnswer

Object: TypeAlias = dict[str, Any]

_REF: Final = "#/components/schemas/{model}"
_PARAMETER: Final = re.compile(r"{(\w+)(?::\w+)?}")
_ERROR_TYPES: Final[Mapping[Form, tuple[str, Any]]] = {
    "problem": (problems.MEDIA_TYPE, problems.Problem),
    "openai": (JSON, ErrorAnswer),
}

_DESCRIPTION: Final = """\
Creates streams, which are answers of language models, and follows them: from any pod, through whatever happens to pods.

Where there is a `GET` there is a `HEAD`, too. Any request may have an `X-Request-Id` (1 to 128 of `A-Z a-z 0-9 . _ :
-`), and gets it back; else it is given one. A parameter that comes twice is refused.
"""

# Each is one way to present a credential; pods that allow anonymous use need none.
_SECURITY_SCHEMES: Final[Object] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, a token of one stream, or a token of the configured identity provider.",
    },
    "cookie": {
        "type": "apiKey",
        "in": "cookie",
        "name": credentials.COOKIE,
        "description": "A token of one stream, for browsers.",
    },
    "query": {
        "type": "apiKey",
        "in": "query",
        "name": credentials.QUERY,
        "description": "A token of one stream, for clients that can set neither headers nor cookies.",
    },
}

_PARAMETERS: Final[dict[str, Object]] = {
    "Idempotency-Key": {
        "in": "header",
        "description": "The client's own name for this request, so that repeating it creates nothing new.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
    },
    "Last-Event-ID": {
        "in": "header",
        "description": "The number of the last event that the client has. The query may name one: the newest counts.",
        "schema": {"type": "string", "pattern": "^[0-9]{0,18}$"},
    },
    "last_event_id": {
        "in": "query",
        "description": "As `Last-Event-ID`, for clients that cannot set headers.",
        "schema": {"type": "string", "pattern": "^[0-9]{0,18}$"},
    },
    "lastEventId": {
        "in": "query",
        "description": "As `last_event_id`; polyfills of EventSource add it when they reconnect.",
        "schema": {"type": "string", "pattern": "^[0-9]{0,18}$"},
    },
    "startIndex": {
        "in": "query",
        "description": "How many chunks to leave out, or, if negative, how many to send of those that there are.",
        "schema": {"type": "string", "pattern": "^-?[0-9]{1,9}$"},
    },
    "metadata": {
        "in": "query",
        "description": "Only streams with these metadata: `metadata.chat=42`. At most 4.",
        "style": "form",
        "explode": True,
        "schema": {
            "type": "object",
            "patternProperties": {r"^metadata\.[^\x00]*$": {"type": "string", "pattern": r"^[^\x00]*$"}},
            "additionalProperties": False,
            "maxProperties": 4,
        },
    },
}

# What is in a path, by the name of the parameter and the beginning of the path.
_IN_PATHS: Final[Mapping[tuple[str, str], Object]] = {
    ("id", "/v1/streams"): {"type": "string", "pattern": f"^{STREAM_ID}$"},
    ("id", "/v1/responses"): {"type": "string", "pattern": f"^(resp_)?{STREAM_ID}$"},
    ("name", "/v1/models"): {"type": "string", "minLength": 1},
    ("name", "/assets"): {"type": "string", "minLength": 1, "pattern": r"^[^/]+$"},
    ("chat", "/v1/ai-sdk"): {
        "type": "string",
        "minLength": 1,
        "pattern": r"^[^\x00]+$",
        "description": "The id of a chat, or `run_` and the id of a stream without hyphens.",
    },
}

_HEADERS: Final[Object] = {
    "x-request-id": {
        "description": "The id of the request, which the pod's log has too.",
        "schema": {"type": "string"},
    },
    "x-baton-pod": {"description": "The pod that answers.", "schema": {"type": "string"}},
    "location": {"description": "The path of the stream.", "schema": {"type": "string"}},
    "retry-after": {"description": "After how many seconds to try again.", "schema": {"type": "integer"}},
    "x-workflow-run-id": {
        "description": "The run: `run_` and the id of the stream.",
        "schema": {"type": "string", "pattern": "^run_[0-9a-f]{32}$"},
    },
}
_EVERYWHERE: Final = ("x-request-id", "x-baton-pod")


def document(routes: Iterable[BaseRoute]) -> Object:
    """Return the document of these routes, but for the `servers`, which depend on where the app is mounted.

    Raises:
        KeyError: `contract` knows nothing of a route.
    """
    schemas = _Schemas()
    paths: dict[str, Object] = {}
    for route, method in _documented(routes):
        path = _PARAMETER.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[method.lower()] = _operation(route, path, OPERATIONS[method, path], schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Baton",
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas.defined(),
            "securitySchemes": _SECURITY_SCHEMES,
            "headers": _HEADERS,
        },
    }


def _documented(routes: Iterable[BaseRoute]) -> Iterator[tuple[Route, Any]]:
    for route in routes:
        if isinstance(route, Route) and route.include_in_schema:
            for method in sorted((route.methods or set()) - {"HEAD"}):
                yield route, method


class _Schemas:
    """The schemas of types, each under its name."""

    def __init__(self) -> None:
        kinds: dict[tuple[Any, Any], TypeAdapter[Any]] = {("Event", "serialization"): TypeAdapter(Event)}
        for operation in OPERATIONS.values():
            if operation.body is not None:
                kinds[operation.body, "validation"] = TypeAdapter(operation.body)
            for answer in operation.answers.values():
                for kind in answer.content.values():
                    if not isinstance(kind, str):
                        kinds[kind, "serialization"] = TypeAdapter(kind)
        for _, kind in _ERROR_TYPES.values():
            kinds[kind, "serialization"] = TypeAdapter(kind)
        inputs = [(key, mode, adapter) for (key, mode), adapter in kinds.items()]
        self._made, shared = TypeAdapter.json_schemas(inputs, ref_template=_REF)
        self._definitions: Object = shared.get("$defs", {}) | {"Event": self._made["Event", "serialization"]}

    def of(self, kind: Any, mode: str = "serialization") -> Object:
        """Return the schema of a type."""
        return self._made[kind, mode]  # type: ignore[index]

    def defined(self) -> Object:
        """Return the schemas that others refer to."""
        return self._definitions


def _operation(route: Route, path: str, operation: Operation, schemas: _Schemas) -> Object:
    summary, _, rest = (inspect.getdoc(route.endpoint) or "").partition("\n\n")
    described: Object = {
        "operationId": route.endpoint.__name__,
        "tags": [operation.tag],
        "summary": summary.replace("\n", " "),
        "description": (rest + _needs(operation)).strip(),
        "security": [] if operation.scope is None else [{name: []} for name in _SECURITY_SCHEMES] + [{}],
        "parameters": [
            *_path_parameters(path),
            *(parameter for model in operation.query for parameter in _query_parameters(model)),
            *({"name": name, **_PARAMETERS[name]} for name in operation.parameters),
        ],
        "responses": _responses(operation, schemas),
    }
    if operation.body is not None:
        content = {JSON: {"schema": schemas.of(operation.body, "validation")}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _needs(operation: Operation) -> str:
    return "" if operation.scope is None else f"\n\nNeeds the scope `{operation.scope}`."


def _path_parameters(path: str) -> Iterator[Object]:
    for name in _PARAMETER.findall(path):
        (schema,) = (found for (known, start), found in _IN_PATHS.items() if known == name and path.startswith(start))
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(model: type[BaseModel]) -> Iterator[Object]:
    for name, schema in model.model_json_schema()["properties"].items():
        # A query has no null: what may be None may be left out.
        kinds = [kind for kind in schema.pop("anyOf", []) if kind != {"type": "null"}]
        if schema.get("default", "") is None:
            del schema["default"]
        yield {"name": name, "in": "query", "schema": {**schema, **(kinds[0] if kinds else {})}}


def _responses(operation: Operation, schemas: _Schemas) -> Object:
    found: Object = {}
    for status, answer in operation.answers.items():
        content = {media: _content(kind, media, schemas) for media, kind in answer.content.items()}
        found[str(status)] = _response(answer.description, answer, content)
    for status in sorted({error.status for error in operation.refusals} | _own_refusals(operation)):
        errors = [error for error in operation.refusals if error.status == status]
        _add_refusal(found.setdefault(str(status), {}), status, errors, operation.form, schemas)
    return dict(sorted(found.items()))


def _own_refusals(operation: Operation) -> set[int]:
    """The statuses of errors that are answers: of no class, and without content of their own."""
    return {status for status, answer in operation.answers.items() if status >= 400 and not answer.content}


def _response(description: str, answer: Given, content: Object) -> Object:
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in (*_EVERYWHERE, *answer.headers)}
    return {"description": description, "headers": headers, **({"content": content} if content else {})}


def _content(kind: Any, media: str, schemas: _Schemas) -> Object:
    if not isinstance(kind, str):
        return {"schema": schemas.of(kind)}
    return {"schema": _event(kind) if media == EVENTS else {"type": "string", "description": kind}}


def _event(description: str) -> Object:
    """The schema of each event of a stream, in the form that OpenAPI 3.2 has for server-sent events."""
    data: Object = {"type": "string"}
    if "`Event`" in description:
        data |= {"contentMediaType": JSON, "contentSchema": {"$ref": _REF.format(model="Event")}}
    fields = {"data": data, "event": {"type": "string"}, "id": {"type": "string", "pattern": "^[0-9]*$"}}
    return {"type": "object", "description": f"Each of the events. {description}", "properties": fields}


def _add_refusal(
    response: Object, status: int, errors: list[type[RequestError]], form: Form, schemas: _Schemas
) -> None:
    media, kind = _ERROR_TYPES[form]
    codes = "; ".join(f"`{error.code}`: {error.title}" for error in errors)
    told = [response.get("description", ""), codes or HTTPStatus(status).phrase]
    empty = Given("", headers=("retry-after",) if status == 503 else ())
    known = response.get("content", {})
    response |= _response(" ".join(filter(None, told)), empty, known | {media: {"schema": schemas.of(kind)}})
