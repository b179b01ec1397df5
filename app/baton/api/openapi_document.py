"""The OpenAPI 3.1 document of a pod, made from the declarations of its routes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, TypeAlias

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from starlette.routing import BaseRoute

from ..auth import credentials
from ..errors import PassingError, RequestError
from ..version import __version__
from .parameters import POD, REQUEST_ID, RETRY_AFTER
from .routing import JSON, AnswerHeader, DeclaredRoute, ErrorForm, Operation, Parameter, Returns

Object: TypeAlias = dict[str, Any]

# Answers in another form. Among `responses`, generated clients would make them part of the type of every answer.
ALTERNATIVES: Final = "x-alternatives"
_REF: Final = "#/components/schemas/{model}"

_DESCRIPTION: Final = """\
Creates streams, which are answers of language models, and follows them: from any pod, even if pods die.

An operation's `responses` have one type. Other forms, which a client asks for by a header or a field, are in its
`x-alternatives`, each with that header or field. The schema of `text/event-stream` is the type of the JSON in the
`data` of each event.

Every `GET` has a `HEAD`, too. A request may have an `X-Request-Id` (1 to 128 of `A-Z a-z 0-9 . _ : -`), which the
answer repeats; otherwise it gets one. A parameter with two values is refused.
"""

# The ways to present a credential. Pods that allow anonymous access need none.
_SECURITY_SCHEMES: Final[Object] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, a token of one stream, or a token of the configured identity provider.",
    },
    "api_key": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Api-Key",
        "description": "The same, as clients of Anthropic's and LangGraph's APIs send it. `bearer` precedes it.",
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

_EVERYWHERE: Final = (REQUEST_ID, POD)


def document(routes: Iterable[BaseRoute]) -> Object:
    """Return the document of these routes, without `servers`, which depend on where the app is mounted.

    Other routes, which an application may have added, are left out.
    """
    declared = [
        (route.documented_path, route.operation)
        for route in routes
        if isinstance(route, DeclaredRoute) and route.operation is not None
    ]
    operations = [operation for _, operation in declared]
    schemas = _Schemas(operations)
    paths: dict[str, Object] = {}
    for path, operation in declared:
        paths.setdefault(path, {})[operation.method.lower()] = _operation(path, operation, schemas)
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
            "headers": _headers(operations),
        },
    }


def _headers(operations: Sequence[Operation]) -> Object:
    found: dict[str, AnswerHeader] = {header.name: header for header in (*_EVERYWHERE, RETRY_AFTER)}
    for operation in operations:
        found |= {header.name: header for answer in _answers(operation) for header in answer.headers}
    return {name: {"description": header.description, "schema": header.schema} for name, header in found.items()}


class _Schema(GenerateJsonSchema):
    """Makes schemas that client generators read correctly."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Give no field a title: it would repeat the name, and generators use titles as names of types."""
        return False

    def dict_schema(self, schema: Any) -> Object:
        """Describe keys by `propertyNames`: few generators know `patternProperties`."""
        found = super().dict_schema(schema)
        for pattern, values in found.pop("patternProperties", {}).items():
            found["additionalProperties"] = values
            found["propertyNames"] = {**found.get("propertyNames", {}), "pattern": pattern}
        return found


class _BodySchema(_Schema):
    """The same for bodies, without defaults: openapi-typescript requires every field that has one."""

    def default_schema(self, schema: Any) -> Object:
        """Leave the default out."""
        return self.generate_inner(schema["schema"])


class _Schemas:
    """The schemas of types, each under its name."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        kinds: dict[tuple[Any, Any], TypeAdapter[Any]] = {}
        for operation in operations:
            if operation.body is not None:
                kinds[operation.body, "validation"] = TypeAdapter(operation.body)
            for answer in _answers(operation):
                for kind in answer.content.values():
                    if not isinstance(kind, str):
                        kinds[kind, "serialization"] = TypeAdapter(kind)
            kinds[operation.form.content, "serialization"] = TypeAdapter(operation.form.content)
        inputs = [(key, mode, adapter) for (key, mode), adapter in kinds.items()]
        self._made, shared = TypeAdapter.json_schemas(inputs, ref_template=_REF, schema_generator=_BodySchema)
        self._definitions: Object = shared.get("$defs", {})

    def of(self, kind: Any, mode: str = "serialization") -> Object:
        """Return the schema of a type."""
        return self._made[kind, mode]  # type: ignore[index]

    def defined(self) -> Object:
        """Return the schemas that others refer to."""
        return self._definitions


def _answers(operation: Operation) -> Iterator[Returns]:
    for answers in (operation.answers, *operation.others.values()):
        yield from answers.values()


def _operation(path: str, operation: Operation, schemas: _Schemas) -> Object:
    summary, _, rest = (inspect.getdoc(operation.handler) or "").partition("\n\n")
    described: Object = {
        "operationId": operation.handler.__name__,
        "tags": [operation.tag],
        "summary": summary.replace("\n", " "),
        "description": (rest + _needs(operation) + _other_forms(operation)).strip(),
        "security": [] if operation.scope is None else [{name: []} for name in _SECURITY_SCHEMES] + [{}],
        "parameters": [
            *_path_parameters(path, operation),
            *(parameter for model in operation.query for parameter in _query_parameters(model)),
            *map(_parameter, operation.parameters),
        ],
        "responses": _responses(operation, schemas),
    }
    if operation.body is not None:
        content = {JSON: {"schema": schemas.of(operation.body, "validation")}}
        described["requestBody"] = {"required": operation.body_required, "content": content}
    if operation.content:
        described["requestBody"] = {
            "required": False,
            "description": operation.content,
            "content": {"*/*": {"schema": {}}},
        }
    if operation.others:
        described[ALTERNATIVES] = [
            {"with": asked, "responses": _given(answers, schemas)} for asked, answers in operation.others.items()
        ]
    return described


def _needs(operation: Operation) -> str:
    if operation.scope is None:
        return ""
    other = "" if operation.or_scope is None else f" or `{operation.or_scope}`"
    return f"\n\nNeeds the scope `{operation.scope}`{other}."


def _other_forms(operation: Operation) -> str:
    forms = [
        f"With `{asked}` it answers with `{media}`."
        for asked, answers in operation.others.items()
        for answer in answers.values()
        for media in answer.content
    ]
    return "\n\n" + " ".join(forms) if forms else ""


def _path_parameters(path: str, operation: Operation) -> Iterator[Object]:
    for name, schema in operation.path.items():
        if f"{{{name}}}" in path:
            yield {"name": name, "in": "path", "required": True, "schema": schema}


def _parameter(parameter: Parameter) -> Object:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.description,
        **parameter.more,
        "schema": parameter.schema,
    }


def _query_parameters(model: type[BaseModel]) -> Iterator[Object]:
    for name, schema in model.model_json_schema(schema_generator=_Schema)["properties"].items():
        # A query has no null: a field that may be None can be left out.
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


def _given(answers: Mapping[int, Returns], schemas: _Schemas) -> Object:
    found: Object = {}
    for status, answer in answers.items():
        content = {media: _content(kind, schemas) for media, kind in answer.content.items()}
        found[str(status)] = _response(answer.description, answer, content)
    return found


def _own_refusals(operation: Operation) -> set[int]:
    """Return the error statuses among the answers without content: no error class has these."""
    return {status for status, answer in operation.answers.items() if status >= 400 and not answer.content}


def _response(description: str, answer: Returns, content: Object) -> Object:
    headers = {
        header.name: {"$ref": f"#/components/headers/{header.name}"} for header in (*_EVERYWHERE, *answer.headers)
    }
    return {"description": description, "headers": headers, **({"content": content} if content else {})}


def _content(kind: Any, schemas: _Schemas) -> Object:
    return {"schema": {"type": "string", "description": kind} if isinstance(kind, str) else schemas.of(kind)}


def _add_refusal(
    response: Object, status: int, errors: list[type[RequestError]], form: ErrorForm, schemas: _Schemas
) -> None:
    codes = "; ".join(f"`{error.code}`: {error.title}" for error in errors)
    sentences = [response.get("description", ""), codes or HTTPStatus(status).phrase]
    passing = any(issubclass(error, PassingError) for error in errors)
    empty = Returns("", headers=(RETRY_AFTER,) if passing else ())
    known = response.get("content", {})
    response |= _response(
        " ".join(filter(None, sentences)), empty, known | {form.media_type: {"schema": schemas.of(form.content)}}
    )
