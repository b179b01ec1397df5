"""What the adapters for model providers share: one streamed call, and errors in our own sentences.

Invariants of every adapter:

- An answer counts as complete only when the provider has said why it stopped. A connection that ends before
  that, even cleanly, is `provider_cut_off`.
- Leaving the generator at any point, by `aclose()` or by cancellation, closes the HTTP response at once, so
  that the provider stops generating and billing.
- One call is tried once here: `attempts` alone repeats calls, and the SDKs do not.
- Error messages reach the client: they contain no key, no address, and no internals of a provider.
"""

from __future__ import annotations

import asyncio
import importlib
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from ..errors import GenerationError
from ..observability import tracing
from ..settings import Settings
from . import attempts
from .answer_record import current_record
from .attempts import Candidate, Patience
from .concurrency import Concurrency
from .protocol import GenerationRequest, Yielded, refuse_approvals
from .provider_answer import ProviderAnswer, identity
from .requested_model import RequestedModel
from .sdk_errors import error_object, failed, refusal_by_status, reported, timeout, unreachable

# How long the usage and the end of the response may still take after the provider has said why it stopped.
_TRAILER_SECONDS = 2.0

# Transport options are Baton's. With `n`, several answers would be mixed into one.
_RESERVED = frozenset({"extra_body", "extra_headers", "extra_query", "n", "timeout"})

# Fields for Baton. With `background`, the answer would continue, and be billed, after a cancellation.
_OURS = frozenset({"background", "stream"})


@dataclass(frozen=True, slots=True)
class SdkErrors:
    """The classes of one SDK's errors."""

    any: type[Exception]
    connection: type[Exception]
    timeout: type[Exception]


class SdkStream(Protocol):
    """A streamed response of an SDK."""

    @property
    def response(self) -> Any:
        """The HTTP response."""

    def __aiter__(self) -> AsyncIterator[Any]: ...

    async def close(self) -> None: ...


class Provider(ABC):
    """A generator that asks a model provider through its SDK; `aclose()` it when no stream runs any more."""

    name: ClassVar[str]
    model_setting: ClassVar[str]
    errors: ClassVar[SdkErrors]
    http: ClassVar[Any]  # the module of the HTTP library that the SDK uses
    request_id_header: ClassVar[str]

    def __init__(self, settings: Settings, model: str | None) -> None:
        self._default_model = model
        self.patience = Patience(settings.provider_max_retries, settings.provider_max_wait_seconds)

    @abstractmethod
    def body(self, given: Any) -> dict[str, Any]:
        """Return an input of any form as the body of a request."""

    @abstractmethod
    async def open(self, model: str, body: dict[str, Any]) -> SdkStream:
        """Send the request and return its streamed response."""

    @abstractmethod
    def answer(self) -> ProviderAnswer:
        """Return what translates one streamed response."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close the connections to the provider."""

    def __call__(self, request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        """Ask the provider, again if it fails before its answer begins, and yield its answer as it comes."""
        asked = self.requested_model(request.input)
        return attempts.answer([Candidate(self.name, asked, self.ask, request, Concurrency())], self.patience)

    def knows(self, state: Any) -> bool:
        """Whether this provider began what a state stands for."""
        return False

    async def ask(self, request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        """Ask the provider once, and yield its answer as it comes.

        Raises:
            GenerationError: its cause is the SDK's exception, if there was one.
        """
        refuse_approvals(self.name, request)
        body = self.body(permitted(request.input))
        model = self._model(body.pop("model", None))
        answer = self.answer()
        stream = await self._open(model, body)
        failure: GenerationError | None = None
        known = False
        try:
            events = aiter(stream)
            while (event := await self._next(events, answer)) is not None:
                if not known:
                    known = True
                    self._note(identity(event), stream)
                for item in answer.translate(event):
                    yield item
        except GenerationError as error:
            failure = error
        finally:
            await stream.close()
        for item in self.conclusion(answer, failure):
            yield item

    @staticmethod
    def conclusion(answer: ProviderAnswer, failure: GenerationError | None) -> Iterator[Yielded]:
        """Yield what follows the events of an answer: its usage, also after a failure, since the provider bills it.

        Raises:
            GenerationError: the failure, or the answer is not complete.
        """
        if failure is None and answer.finish_reason is None:
            failure = cut_off()
        if answer.usage is not None:
            yield answer.usage
        if failure is not None:
            raise failure
        yield {"type": "finish", "finish_reason": answer.finish_reason}

    def _note(self, said: Mapping[str, str | None], stream: SdkStream) -> None:
        """Note what the provider says about its answer, in the trace and for the stream's row."""
        tracing.note(said)
        current_record().identify(
            model=said["gen_ai.response.model"],
            response_id=said["gen_ai.response.id"],
            request_id=stream.response.headers.get(self.request_id_header),
        )

    def requested_model(self, given: Any) -> RequestedModel:
        """Return the model that an input asks for."""
        named = given.get("model") if isinstance(given, Mapping) else None
        model = (named if named != self.name else None) or self._default_model
        return RequestedModel(model if isinstance(model, str) else None, self.name)

    def _model(self, named: Any) -> str:
        # A client that must name a model may name the generator.
        model = (named if named != self.name else None) or self._default_model
        if not model:
            raise GenerationError(
                "provider_not_configured",
                "The request names no model, and there is no default.",
                operator=f'set {self.model_setting}, or put "model" into the input',
            )
        if not isinstance(model, str):
            raise GenerationError("invalid_input", 'The input\'s "model" must be a string.')
        return model

    async def _open(self, model: str, body: dict[str, Any]) -> SdkStream:
        try:
            return await self.open(model, body)
        except (self.errors.any, self.http.HTTPError, OSError) as error:
            raise self._refusal(error) from error

    async def _next(self, events: AsyncIterator[Any], answer: ProviderAnswer) -> Any:
        """Return the next event; None at the end, and on any error after the answer is complete."""
        complete = answer.finish_reason is not None
        try:
            async with asyncio.timeout(_TRAILER_SECONDS if complete else None):
                return await anext(events, None)
        except Exception as error:
            if complete:
                return None
            raise self._break(error) from error

    def _refusal(self, error: Exception) -> GenerationError:
        """Return the error that says why no answer began."""
        status = getattr(error, "status_code", None)
        if isinstance(error, self.errors.timeout | self.http.TimeoutException):
            return timeout(begun=False)
        if isinstance(status, int):
            return refusal_by_status(status, error)
        if isinstance(error, self.errors.connection | self.http.HTTPError | OSError):
            return unreachable(begun=False)
        return failed()

    def _break(self, error: Exception) -> GenerationError:
        """Return the error that says why an answer stopped."""
        if isinstance(error, self.errors.timeout | self.http.TimeoutException):
            return timeout(begun=True)
        if isinstance(error, self.errors.connection | self.http.HTTPError | OSError):
            return unreachable(begun=True)
        if isinstance(error, self.errors.any):
            return reported(error_object(error))
        return GenerationError("provider_error", "The model provider sent something that cannot be read.")


def cut_off() -> GenerationError:
    """Return the error for an answer that ended without a reason."""
    return GenerationError("provider_cut_off", "The model provider ended the answer before it was complete.")


def permitted(given: Any) -> Any:
    """Return an input without the fields for Baton.

    Raises:
        GenerationError: it has a field that clients may not set.
    """
    if not isinstance(given, Mapping):
        return given
    body = {name: value for name, value in given.items() if name not in _OURS and (name, value) != ("n", 1)}
    if refused := sorted(_RESERVED & body.keys()):
        raise GenerationError("invalid_input", f"The input cannot set {', '.join(map(repr, refused))}.")
    return body


def http_library(client: type) -> Any:
    """Return the module `httpx2` or `httpx`: the one whose client is a base of an SDK's own client class.

    OpenAI's SDK accepts clients of `httpx` up to its second major release, and of `httpx2` from the third on.
    """
    made_of = next(base for base in client.__mro__ if base.__name__ == "AsyncClient")
    return importlib.import_module(made_of.__module__.partition(".")[0])


def http_client(settings: Settings, http: Any) -> Any:
    """Return a client of the library `http` with as many connections as there are streams: the worker limits those."""
    seconds = settings.provider_timeout_seconds
    return http.AsyncClient(
        timeout=http.Timeout(seconds, connect=min(seconds, 10)),
        limits=http.Limits(max_connections=None, max_keepalive_connections=100),
        follow_redirects=True,
    )
