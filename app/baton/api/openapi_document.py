"""The OpenAPI 3.1 document of a pod: made once, of the routes, the models of requests and the types of answers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final, TypeAlias

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from starlette.routing import BaseRoute, Route

from ..auth import credentials
from ..errors import PassingError, RequestError
from ..events import STREAM_ID
from ..version import __version__
from . import problems
from .contract import JSON, OPERATIONS, Form, Given, Operation
from .openai import ErrorAnswer

Object: TypeAlias = dict[str, Any]

# Answers in another form. Among `responses`, generated clients would take them for a part of the type of every answer.
ALTERNATIVES: Final = "x-alternatives"
_REF: Final = "#/components/schemas/{model}"
_PARAMETER: Final = re.compile(r"{(\w+)(?::\w+)?}")
_ERROR_TYPES: Final[Mapping[Form, tuple[str, Any]]] = {
    "problem": (problems.MEDIA_TYPE, problems.Problem),
    "openai": (JSON, ErrorAnswer),
}

_DESCRIPTION: Final = """\
Creates streams, which are answers of language models, and follows them: from any pod, through whatever happens to pods.

An operation's `responses` have one type. Answers in another form, which a client asks for by a header or a field, are
in its `x-alternatives`, each with that header or field. The schema of `text/event-stream` is the type of the JSON in
the `data` of each event.

Where there is a `GET` there is a `HEAD`, too. Any request may have an `X-Request-Id` (1 to 128 of `A-Z a-z 0-9 . _ :
-`), and gets it back; else it is given one. A parameter with two values is refused.
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
        "description": "As `Last-Event-ID`, for clients that cannot set headers, and `lastEventId` is the same, since "
        "polyfills of EventSource add it when they reconnect. Of several, the greatest counts.",
        "schema": {"type": "string", "pattern": "^[0-9]{0,18}$"},
    },
    "startIndex": {
        "in": "query",
        "description": "How many chunks to leave out; if negative, how many to send of those that there are, or more: "
        "the first one opens a part.",
        "schema": {"type": "integer", "minimum": -999_999_999, "maximum": 999_999_999},
    },
    # Most clients write any object so, whatever `style` says.
    "metadata": {
        "in": "query",
        "description": "Only streams with these metadata: `metadata[chat]=42`, or `metadata.chat=42`. At most 4.",
        "style": "deepObject",
        "explode": True,
        "schema": {
            "type": "object",
            "propertyNames": {"pattern": r"^[^\x00]*$"},
            "additionalProperties": {"anyOf": [{"type": "string", "pattern": r"^[^\x00]*$"}, {"type": "number"}]},
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
    "x-baton-token": {
        "description": "A token of the stream, where the pod has a key to sign one with.",
        "schema": {"type": "string"},
    },
    "x-workflow-stream-tail-index": {
        "description": "Where `startIndex` is negative: this and `startIndex` and 1, added up, are the index of the "
        "first chunk that is sent.",
        "schema": {"type": "integer"},
    },
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


class _Schema(GenerateJsonSchema):
    """Makes schemas that client generators read as they are meant."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """No field has a title: it would repeat the name, and generators call types by it."""
        return False

    def dict_schema(self, schema: Any) -> Object:
        """Say with `propertyNames` what keys look like. Few generators know `patternProperties`."""
        found = super().dict_schema(schema)
        for pattern, values in found.pop("patternProperties", {}).items():
            found["additionalProperties"] = values
            found["propertyNames"] = {**found.get("propertyNames", {}), "pattern": pattern}
        return found


class _BodySchema(_Schema):
    """The same for bodies, without defaults: openapi-typescript takes what has one for required."""

    def default_schema(self, schema: Any) -> Object:
        """Leave the default out."""
        return self.generate_inner(schema["schema"])


class _Schemas:
    """The schemas of types, each under its name."""

    def __init__(self) -> None:
        kinds: dict[tuple[Any, Any], TypeAdapter[Any]] = {}
        for operation in OPERATIONS.values():
            if operation.body is not None:
                kinds[operation.body, "validation"] = TypeAdapter(operation.body)
            for answer in _answers(operation):
                for kind in answer.content.values():
                    if not isinstance(kind, str):
                        kinds[kind, "serialization"] = TypeAdapter(kind)
        for _, kind in _ERROR_TYPES.values():
            kinds[kind, "serialization"] = TypeAdapter(kind)
        inputs = [(key, mode, adapter) for (key, mode), adapter in kinds.items()]
        self._made, shared = TypeAdapter.json_schemas(inputs, ref_template=_REF, schema_generator=_BodySchema)
        self._definitions: Object = shared.get("$defs", {})

    def of(self, kind: Any, mode: str = "serialization") -> Object:
        """Return the schema of a type."""
        return self._made[kind, mode]  # type: ignore[index]

    def defined(self) -> Object:
        """Return the schemas that others refer to."""
        return self._definitions


def _answers(operation: Operation) -> Iterator[Given]:
    for answers in (operation.answers, *operation.others.values()):
        yield from answers.values()


def _operation(route: Route, path: str, operation: Operation, schemas: _Schemas) -> Object:
    summary, _, rest = (inspect.getdoc(route.endpoint) or "").partition("\n\n")
    described: Object = {
        "operationId": route.endpoint.__name__,
        "tags": [operation.tag],
        "summary": summary.replace("\n", " "),
        "description": (rest + _needs(operation) + _other_forms(operation)).strip(),
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
        described["requestBody"] = {"required": operation.body_required, "content": content}
    if operation.others:
        described[ALTERNATIVES] = [
            {"with": asked, "responses": _given(answers, schemas)} for asked, answers in operation.others.items()
        ]
    return described


def _needs(operation: Operation) -> str:
    return "" if operation.scope is None else f"\n\nNeeds the scope `{operation.scope}`."


def _other_forms(operation: Operation) -> str:
    forms = [
        f"With `{asked}` it answers with `{media}`."
        for asked, answers in operation.others.items()
        for answer in answers.values()
        for media in answer.content
    ]
    return "\n\n" + " ".join(forms) if forms else ""


def _path_parameters(path: str) -> Iterator[Object]:
    for name in _PARAMETER.findall(path):
        (schema,) = (found for (known, start), found in _IN_PATHS.items() if known == name and path.startswith(start))
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(model: type[BaseModel]) -> Iterator[Object]:
    for name, schema in model.model_json_schema(schema_generator=_Schema)["properties"].items():
        # A query has no null: what may be None may be left out.
        kinds = [kind for kind in schema.pop("anyOf", []) if kind != {"type": "null"}]
        if schema.get("default", "") is None:
            del schema["default"]
        yield {"name": name, "in": "query", "schema": {**schema, **(kinds[0] if len(kinds) == 1 else _any_of(kinds))}}


def _any_of(kinds: list[Object]) -> Object:
    return {"anyOf": kinds} if kinds else {}


def _responses(operation: Operation, schemas: _Schemas) -> Object:
    found = _given(operation.answers, schemas)
    for status in sorted({error.status for error in operation.refusals} | _own_refusals(operation)):
        errors = [error for error in dict.fromkeys(operation.refusals) if error.status == status]
        _add_refusal(found.setdefault(str(status), {}), status, errors, operation.form, schemas)
    return dict(sorted(found.items()))


def _given(answers: Mapping[int, Given], schemas: _Schemas) -> Object:
    found: Object = {}
    for status, answer in answers.items():
        content = {media: _content(kind, schemas) for media, kind in answer.content.items()}
        found[str(status)] = _response(answer.description, answer, content)
    return found


def _own_refusals(operation: Operation) -> set[int]:
    """The statuses of errors that are answers: of no class, and without content of their own."""
    return {status for status, answer in operation.answers.items() if status >= 400 and not answer.content}


def _response(description: str, answer: Given, content: Object) -> Object:
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in (*_EVERYWHERE, *answer.headers)}
    return {"description": description, "headers": headers, **({"content": content} if content else {})}


def _content(kind: Any, schemas: _Schemas) -> Object:
    return {"schema": {"type": "string", "description": kind} if isinstance(kind, str) else schemas.of(kind)}


def _add_refusal(
    response: Object, status: int, errors: list[type[RequestError]], form: Form, schemas: _Schemas
) -> None:
    media, kind = _ERROR_TYPES[form]
    codes = "; ".join(f"`{error.code}`: {error.title}" for error in errors)
    told = [response.get("description", ""), codes or HTTPStatus(status).phrase]
    passing = any(issubclass(error, PassingError) for error in errors)
    empty = Given("", headers=("retry-after",) if passing else ())
    known = response.get("content", {})
    response |= _response(" ".join(filter(None, told)), empty, known | {media: {"schema": schemas.of(kind)}})
