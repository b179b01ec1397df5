"""What the adapters for model providers share: one streamed call, errors in our words.

Always true of every adapter:

- An answer counts as complete only when the provider has said why it stopped. A connection that ends before
  that, even cleanly, is `provider_cut_off`.
- Leaving the generator at any point, by `aclose()` or by cancellation, closes the HTTP response at once, so
  that the provider stops generating and billing.
- Sentences of errors reach the client: they hold no key, no address and nothing of a provider's own trouble.
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import httpx2

from ..errors import GenerationError
from ..settings import Settings
from .answer import Answer, part
from .protocol import GenerationRequest, Yielded, refuse_approvals

# How long usage and the end of the file may still take once the provider has said why it stopped.
_TRAILER_SECONDS = 2.0

# How the request travels is ours to decide; with `n` several answers would be mixed into one.
_RESERVED = frozenset({"extra_body", "extra_headers", "extra_query", "n", "timeout"})

# What a client asked of us. `background` would go on, and be billed, after a cancellation.
_OURS = frozenset({"background", "stream"})

_PRIVATE = re.compile(
    r"""\b\w+://\S+                                  # addresses
      | \b(?:\d{1,3}\.){3}\d{1,3}\b\S*
      | \b\S+:\d{2,5}\b\S*
      | \b[\w-]+(?:\.[\w-]+)*\.(?:cluster|corp|internal|lan|local|svc)\b\S*
      | \b(?:sk|pk|key|org|proj)-\S+                 # keys and accounts
      | \bBearer\s+\S+
      | [\w+/=-]{32,}""",
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class SdkErrors:
    """The classes of one SDK's errors."""

    any: type[Exception]
    connection: type[Exception]
    timeout: type[Exception]


class EventStream(Protocol):
    """A streamed response of an SDK."""

    def __aiter__(self) -> AsyncIterator[Any]: ...

    async def close(self) -> None: ...


class Provider(ABC):
    """A generator that asks a model provider through its SDK; `aclose()` it when no stream runs any more."""

    name: ClassVar[str]
    model_setting: ClassVar[str]
    errors: ClassVar[SdkErrors]

    def __init__(self, settings: Settings, model: str | None) -> None:
        self._default_model = model
        self._silence_seconds = settings.provider_timeout_seconds

    @abstractmethod
    def body(self, given: Any) -> dict[str, Any]:
        """Return an input of any form as the body of a request."""

    @abstractmethod
    async def open(self, model: str, body: dict[str, Any]) -> EventStream:
        """Send the request and return its streamed response."""

    @abstractmethod
    def answer(self) -> Answer:
        """Return what translates one streamed response."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close the connections to the provider."""

    async def __call__(self, request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        """Ask the provider and yield its answer as it comes."""
        refuse_approvals(self.name, request)
        body = self.body(_permitted(request.input))
        model = self._model(body.pop("model", None))
        answer = self.answer()
        stream = await self._open(model, body)
        try:
            events = aiter(stream)
            while (event := await self._next(events, answer)) is not None:
                for item in answer.translate(event):
                    yield item
        finally:
            await stream.close()
        if answer.finish_reason is None:
            raise GenerationError("provider_cut_off", "The model provider ended the answer before it was complete.")
        if answer.usage is not None:
            yield answer.usage
        yield {"type": "finish", "finish_reason": answer.finish_reason}

    def _model(self, named: Any) -> str:
        # A client that has to name a model may name the generator.
        model = (named if named != self.name else None) or self._default_model
        if not model:
            raise GenerationError(
                "provider_not_configured",
                "No model is named for this answer.",
                operator=f'set {self.model_setting}, or put "model" into the input',
            )
        if not isinstance(model, str):
            raise GenerationError("invalid_input", 'The input\'s "model" is a string.')
        return model

    async def _open(self, model: str, body: dict[str, Any]) -> EventStream:
        try:
            return await self.open(model, body)
        except (self.errors.any, httpx2.HTTPError, OSError) as error:
            raise self._refusal(error) from error

    async def _next(self, events: AsyncIterator[Any], answer: Answer) -> Any:
        """Return the next event; None at the end, and on any trouble after the answer is complete."""
        complete = answer.finish_reason is not None
        try:
            async with asyncio.timeout(_TRAILER_SECONDS if complete else None):
                return await anext(events, None)
        except Exception as error:
            if complete:
                return None
            raise self._break(error) from error

    def _refusal(self, error: Exception) -> GenerationError:
        """Say why no answer began."""
        status = getattr(error, "status_code", None)
        if isinstance(error, self.errors.timeout | httpx2.TimeoutException) or status == 408:
            return GenerationError("provider_timeout", "The model provider did not answer in time.")
        if isinstance(status, int):
            return _refusal_by_status(status, error)
        if isinstance(error, self.errors.connection | httpx2.HTTPError | OSError):
            return GenerationError("provider_unreachable", "The model provider cannot be reached.")
        return GenerationError("provider_error", "The model provider could not be asked.")

    def _break(self, error: Exception) -> GenerationError:
        """Say why an answer that had begun stopped."""
        if isinstance(error, self.errors.timeout | httpx2.TimeoutException):
            return GenerationError(
                "provider_timeout",
                f"The model provider was silent for {self._silence_seconds:g} seconds in mid-answer.",
            )
        if isinstance(error, self.errors.connection | httpx2.HTTPError | OSError):
            return GenerationError("provider_cut_off", "The connection to the model provider broke in mid-answer.")
        if isinstance(error, self.errors.any):
            return reported(_error_object(error))
        return GenerationError("provider_error", "The model provider sent something that cannot be read.")


def _permitted(given: Any) -> Any:
    """Return an input without what is not the provider's business.

    Raises:
        GenerationError: it holds a field that is not the client's to set.
    """
    if not isinstance(given, Mapping):
        return given
    body = {name: value for name, value in given.items() if name not in _OURS and (name, value) != ("n", 1)}
    if refused := sorted(_RESERVED & body.keys()):
        raise GenerationError("invalid_input", f"The input cannot set {', '.join(map(repr, refused))}.")
    return body


def http_client(settings: Settings) -> httpx2.AsyncClient:
    """Return a client with as many connections as there are streams: the worker limits those."""
    seconds = settings.provider_timeout_seconds
    return httpx2.AsyncClient(
        timeout=httpx2.Timeout(seconds, connect=min(seconds, 10)),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=100),
        follow_redirects=True,
    )


def reported(error: Mapping[str, Any]) -> GenerationError:
    """Say that the provider ended its answer with an error, by the code that it gave."""
    code = error.get("code") or error.get("type")
    known = isinstance(code, str) and re.fullmatch(r"[a-z_]{1,64}", code)
    return GenerationError(
        "provider_error",
        f"The model provider reported an error in mid-answer{f' ({code})' if known else ''}.",
    )


def _refusal_by_status(status: int, error: Exception) -> GenerationError:
    if status == 429:
        return GenerationError("provider_rate_limited", f"The model provider is limiting requests.{_wait(error)}")
    if status in {401, 403}:
        return GenerationError("provider_refused", "The model provider refused the credentials, or this use of them.")
    if status >= 500:
        return GenerationError("provider_error", f"The model provider failed with status {status}.")
    detail = public(str(_error_object(error).get("message") or ""))
    return GenerationError(
        "provider_invalid_request",
        f"The model provider did not accept the request (status {status}){f': {detail}' if detail else '.'}",
    )


def _wait(error: Exception) -> str:
    seconds = part(error, "response", "headers").get("retry-after", "")
    return f" It asks to wait {seconds} seconds." if re.fullmatch(r"\d{1,6}", seconds) else ""


def _error_object(error: Exception) -> Mapping[str, Any]:
    """Return the provider's error object, which one SDK unwraps and the other does not."""
    body = part(error, "body")
    inner = body.get("error", body) if isinstance(body, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def public(message: str) -> str:
    """Shorten a provider's sentence to one line without addresses and keys."""
    line = _PRIVATE.sub("…", " ".join(message.split()))
    return line if len(line) <= 300 else f"{line[:299]}…"
