"""Routes, each declared once: beside its handler.

A module has one `Routes`, whose decorator states the method, the path, the scope, and what the route takes and returns.
Starlette's route, the check of the credential and the operation in the OpenAPI document all come from that. The name
and the docstring of the handler are the operation's id, summary and description.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import BaseModel
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.routing import Route

from ..errors import RequestError
from ..principal import AuthScope
from . import problems
from .admission import Handler, admitted

EVENTS: Final = "text/event-stream"
TEXT: Final = "text/plain"
JSON: Final = "application/json"
HTML: Final = "text/html"

Method = Literal["GET", "HEAD", "POST", "PUT", "DELETE"]
Schema = Mapping[str, Any]
_CONVERTOR: Final = re.compile(r"(?<=\w):\w+}")


class Anything(PathConvertor):
    """Matches any characters of a path, as Starlette's `path` does, and line ends too: an id may have them."""

    regex = r"[\s\S]*"


register_url_convertor("any", Anything())


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter in a header or in the query; `more` has further fields of OpenAPI's parameter object."""

    name: str
    place: Literal["header", "query"]
    description: str
    schema: Schema
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AnswerHeader:
    """A header of an answer."""

    name: str
    description: str
    schema: Schema = field(default_factory=lambda: {"type": "string"})


@dataclass(frozen=True, slots=True)
class Returns:
    """One answer of a route.

    `content` has, for each media type, the type of its JSON or of the data of each event, or a sentence about its text.
    """

    description: str
    content: Mapping[str, Any] = field(default_factory=dict)
    headers: tuple[AnswerHeader, ...] = ()


def _as_it_is(handler: Handler) -> Handler:
    return handler


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """The form in which routes answer errors; `around` wraps a handler so that it does."""

    media_type: str
    content: Any  # the type of its JSON
    around: Callable[[Handler], Handler] = _as_it_is


# The handlers of the application do it.
PROBLEM: Final = ErrorForm(problems.MEDIA_TYPE, problems.Problem)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What the OpenAPI document says about a route.

    `others` has the answers in other forms, by the header or field with which a client asks for each. `path` has the
    schemas of the parameters in the path. `body` is a pydantic model or a union of models, and `content`
    describes a body of any content type.
    """

    method: Method
    handler: Handler
    tag: str
    scope: AuthScope | None
    or_scope: AuthScope | None
    answers: Mapping[int, Returns]
    refusals: Sequence[type[RequestError]]
    form: ErrorForm
    path: Mapping[str, Schema]
    query: Sequence[type[BaseModel]]
    parameters: Sequence[Parameter]
    body: Any
    body_required: bool
    content: str
    others: Mapping[str, Mapping[int, Returns]]


class DeclaredRoute(Route):
    """A Starlette route that knows its scope and operation. Without an operation it is not in the document."""

    def __init__(
        self,
        path: str,
        endpoint: Handler,
        methods: Sequence[str],
        *,
        scope: AuthScope | None,
        or_scope: AuthScope | None = None,
        narrow: bool = False,
        form: ErrorForm = PROBLEM,
        operation: Operation | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(path, endpoint, methods=methods, name=name, include_in_schema=operation is not None)
        self.scope = scope
        self.or_scope = or_scope
        self.narrow = narrow
        self.form = form
        self.operation = operation

    @property
    def documented_path(self) -> str:
        """The path as OpenAPI writes it: without convertors."""
        return _CONVERTOR.sub("}", self.path)


class Routes:
    """The routes of a module, in the order of their handlers.

    `path` has the schemas of the parameters in their paths. All of them answer errors in one form.
    """

    def __init__(self, tag: str, *, path: Mapping[str, Schema] | None = None, form: ErrorForm = PROBLEM) -> None:
        self._tag = tag
        self._path = dict(path or {})
        self._form = form
        self._routes: list[DeclaredRoute] = []

    def __iter__(self) -> Iterator[DeclaredRoute]:
        """Yield the routes."""
        return iter(self._routes)

    def route(
        self,
        method: Method,
        path: str,
        scope: AuthScope | None,
        answers: Mapping[int, Returns],
        *,
        refusals: Sequence[type[RequestError]] = (),
        query: Sequence[type[BaseModel]] = (),
        parameters: Sequence[Parameter] = (),
        body: Any = None,
        body_required: bool = True,
        content: str = "",
        others: Mapping[str, Mapping[int, Returns]] | None = None,
        or_scope: AuthScope | None = None,
        narrow: bool = False,
        counted: bool | None = None,
        around: Callable[[Handler], Handler] | None = None,
        name: str | None = None,
    ) -> Callable[[Handler], Handler]:
        """Declare the decorated handler's route.

        `scope`, `or_scope`, `narrow` and `counted`: see `admitted`. `around` wraps the handler outside of all checks.
        `name` is for `problems.address`.
        """

        def declare(handler: Handler) -> Handler:
            operation = Operation(
                method=method,
                handler=handler,
                tag=self._tag,
                scope=scope,
                or_scope=or_scope,
                answers=answers,
                refusals=refusals,
                form=self._form,
                path=self._path,
                query=query,
                parameters=parameters,
                body=body,
                body_required=body_required,
                content=content,
                others=others or {},
            )
            endpoint = self._form.around(admitted(handler, scope, or_scope=or_scope, narrow=narrow, counted=counted))
            endpoint = endpoint if around is None else around(endpoint)
            declared = {"scope": scope, "or_scope": or_scope, "narrow": narrow, "operation": operation, "name": name}
            self._add(path, endpoint, [method], **declared)
            return handler

        return declare

    def undocumented(
        self, path: str, scope: AuthScope | None, *, methods: Sequence[str] = ("GET",)
    ) -> Callable[[Handler], Handler]:
        """Declare a route of the decorated handler that the document leaves out."""

        def declare(handler: Handler) -> Handler:
            self._add(path, self._form.around(admitted(handler, scope)), methods, scope=scope)
            return handler

        return declare

    def _add(self, path: str, endpoint: Handler, methods: Sequence[str], **declared: Any) -> None:
        self._routes.append(DeclaredRoute(path, endpoint, methods, form=self._form, **declared))
