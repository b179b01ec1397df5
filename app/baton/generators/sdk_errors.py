"""Translates exceptions of model providers' SDKs into Baton's errors, for built-in and custom generators.

The built-in generators use it, and a worker applies it to exceptions of custom generators. A class is recognized by its
module and name, or those of its bases, so no SDK is imported. That includes LiteLLM's exceptions, which subclass
OpenAI's, and exceptions that were wrapped by `raise … from` or in a group.

Errors of an HTTP library that no SDK has wrapped may come from a tool, and not from the model's provider. A worker
ignores them. A generator that knows they come from the provider calls `as_generation_error` itself.

Error messages reach the client: they contain no key, no address, and no internals of a provider.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final

from ..errors import GenerationError

# The exception classes of each package that report an error of the provider, including their subclasses. Other
# exceptions of these packages are bugs of the program, or limits that it has set. Several SDKs come from one code
# generator, so they share these names.
_SDKS: Final = {
    **{package: {"APIError"} for package in ("anthropic", "groq", "together", "cerebras")},
    "openai": {"APIError", "ContentFilterFinishReasonError"},
    "cohere": {"ApiError"},
    "google.genai": {"APIError"},
    "langchain_core": {"ContextOverflowError"},
    "mistralai": {"MistralError", "SDKError"},
    "ollama": {"ResponseError"},
    "pydantic_ai": {"ModelAPIError", "ContentFilterError"},
}
_HTTP: Final = {package: {"HTTPError"} for package in ("httpx", "httpx2")}

# Patterns for the names of an exception's class and its bases.
_TIMEOUT: Final = re.compile(r"Timeout")
_CONNECTION: Final = re.compile(r"(Connection|Transport)Error\b")
_TOO_LONG: Final = re.compile(r"ContextWindowExceeded|ContextOverflow")
_FILTERED: Final = re.compile(r"ContentPolicyViolation|ContentFilter")
_LIMITED: Final = re.compile(r"RateLimit")
_REFUSED: Final = re.compile(r"Authentication|PermissionDenied")

# The providers' codes for these errors, in the body of a refusal.
_TOO_LONG_CODES: Final = frozenset({"context_length_exceeded", "string_above_max_length"})
_FILTER_CODES: Final = frozenset({"content_filter", "content_policy_violation", "moderation_blocked"})
_TOO_LONG_WORDS: Final = re.compile(r"prompt is too long|maximum context length|context window", re.IGNORECASE)

_MOST_WRAPPERS: Final = 50
_MOST_WAIT_SECONDS: Final = 999_999
_NUMBER: Final = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)

_PRIVATE: Final = re.compile(
    r"""\b\w+://\S+                                  # addresses
      | \b(?:\d{1,3}\.){3}\d{1,3}\b\S*
      | \b\S+:\d{2,5}\b\S*
      | \b[\w-]+(?:\.[\w-]+)*\.(?:cluster|corp|internal|lan|local|svc)\b\S*
      | \b(?:sk|pk|key|org|proj)-\S+                 # keys and accounts
      | \bBearer\s+\S+
      | [\w+/=-]{32,}""",
    re.VERBOSE | re.IGNORECASE,
)


def as_generation_error(error: BaseException, *, begun: bool = False, http: bool = True) -> GenerationError | None:
    """Return the error that ends a stream for an exception; None if it does not come from a provider.

    `begun`: part of the answer has arrived, so a lost connection has cut it off. `http`: treat errors of an HTTP
    library as the provider's. A wrapped `GenerationError` is returned unchanged.
    """
    wrapped = list(_unwrapped(error))
    for item in wrapped:
        if isinstance(item, GenerationError):
            return item
    theirs = [item for item in wrapped if _is_of_provider(item, http=http)]
    for item in theirs:
        if (found := _specific(item, wrapped, begun=begun)) is not None:
            return found
    # Generic classes: mostly errors that a provider reported during the answer.
    for item in theirs:
        return reported(error_object(item)) if begun else failed()
    return None


def refusal_by_status(status: int, error: BaseException, *causes: BaseException) -> GenerationError:
    """Return the error for a request that a provider refused, by the status of its answer.

    `causes` may have the headers that `error` lacks.
    """
    if status == 408:
        return timeout(begun=False)
    if status == 429:
        return GenerationError(
            "provider_rate_limited", f"The model provider is limiting requests.{_wait(error, *causes)}"
        )
    if status in {401, 403}:
        return GenerationError(
            "provider_auth_failed", "The model provider refused the credentials, or this use of them."
        )
    if status >= 500:
        return GenerationError(
            "provider_error", f"The model provider failed with status {status}.{_wait(error, *causes)}"
        )
    return _rejected(status, error)


def _rejected(status: int, error: BaseException) -> GenerationError:
    body = error_object(error)
    message = str(body.get("message") or "")
    code = body.get("code") or getattr(error, "code", None)
    if code in _FILTER_CODES:
        return _filtered()
    if code in _TOO_LONG_CODES or _TOO_LONG_WORDS.search(message):
        return _too_long()
    detail = public(message)
    return GenerationError(
        "provider_invalid_request",
        f"The model provider did not accept the request (status {status}){f': {detail}' if detail else '.'}",
    )


class ReportedError(GenerationError):
    """An answer ended with an error that the provider reported; `reported` is its code, if it has a plain one."""

    def __init__(self, reported: str | None) -> None:
        known = f" ({reported})" if reported else ""
        super().__init__("provider_error", f"The model provider reported an error during the answer{known}.")
        self.reported = reported


def reported(error: Mapping[str, Any]) -> ReportedError:
    """Return the error for an answer that the provider ended with an error, with its code."""
    code = error.get("code") or error.get("type")
    return ReportedError(code if isinstance(code, str) and re.fullmatch(r"[a-z_]{1,64}", code) else None)


def timeout(*, begun: bool) -> GenerationError:
    """Return the error for a provider that was silent for too long, before or within its answer."""
    if begun:
        return GenerationError("provider_timeout", "The model provider was silent for too long during the answer.")
    return GenerationError("provider_timeout", "The model provider did not answer in time.")


def unreachable(*, begun: bool) -> GenerationError:
    """Return the error for a connection to the provider that failed, or broke."""
    if begun:
        return GenerationError("provider_cut_off", "The connection to the model provider broke during the answer.")
    return GenerationError("provider_unreachable", "The model provider cannot be reached.")


def failed() -> GenerationError:
    """Return the error for an answer that never began, for an unknown reason."""
    return GenerationError("provider_error", "The request to the model provider failed.")


def error_object(error: BaseException) -> Mapping[str, Any]:
    """Return the provider's error object, which one SDK unwraps and the other does not."""
    body = getattr(error, "body", None)
    inner = body.get("error", body) if isinstance(body, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def public(message: str) -> str:
    """Shorten a provider's sentence to one line without addresses and keys."""
    line = _PRIVATE.sub("…", " ".join(message.split()))
    return line if len(line) <= 300 else f"{line[:299]}…"


def _unwrapped(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, its explicit causes, and the members of groups; each once, up to a maximum.

    The implicit `__context__` is not a cause: there the program failed while it handled another error.
    """
    waiting, seen = [error], set[int]()
    while waiting and len(seen) < _MOST_WRAPPERS:
        item = waiting.pop(0)
        if id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        if isinstance(item, BaseExceptionGroup):
            waiting += item.exceptions
        if item.__cause__ is not None:
            waiting.append(item.__cause__)


def _is_of_provider(error: BaseException, *, http: bool) -> bool:
    known = {**_SDKS, **_HTTP} if http else _SDKS
    return any(
        cls.__name__ in names and f"{cls.__module__}.".startswith(f"{package}.")
        for cls in type(error).__mro__
        for package, names in known.items()
    )


def _specific(error: BaseException, wrapped: list[BaseException], *, begun: bool) -> GenerationError | None:
    """Return the error for the names of an exception's classes, or its status; None if they are generic."""
    names = " ".join(cls.__name__ for cls in type(error).__mro__)
    status = status_of(error)
    if _TOO_LONG.search(names):
        return _too_long()
    if _FILTERED.search(names):
        return _filtered()
    if status is not None and "APIStatusError" in names:
        return refusal_by_status(status, error, *wrapped)
    if _TIMEOUT.search(names):
        return timeout(begun=begun)
    if _CONNECTION.search(names):
        return unreachable(begun=begun)
    if _LIMITED.search(names):
        status = 429
    elif _REFUSED.search(names):
        status = 401
    return None if status is None or status < 400 else refusal_by_status(status, error, *wrapped)


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an exception, wherever its SDK stores it."""
    response = getattr(error, "response", None)
    for status in (
        getattr(error, "status_code", None),
        getattr(error, "code", None),
        getattr(response, "status_code", None),
    ):
        if isinstance(status, int) and not isinstance(status, bool):
            return int(status)
    return None


def header(error: BaseException | None, name: str) -> str | None:
    """Return a header of the response that an SDK's exception belongs to."""
    headers = getattr(getattr(error, "response", None), "headers", None) or getattr(error, "headers", None)
    value = headers.get(name) if isinstance(headers, Mapping) else None
    return value if isinstance(value, str) else None


def request_id(error: BaseException | None) -> str | None:
    """Return the provider's id of the request that failed, for its support."""
    found = getattr(error, "request_id", None)
    return found if isinstance(found, str) else None


def wait_seconds(*errors: BaseException | None) -> float | None:
    """Return how long a provider asks to wait, by the first error that says so: a number of seconds, or a date."""
    for error in errors:
        milliseconds = header(error, "retry-after-ms")
        if milliseconds is not None and _NUMBER.fullmatch(milliseconds):
            return float(milliseconds) / 1000
        if (seconds := _seconds(header(error, "retry-after"))) is not None:
            return seconds
    return None


def _wait(*errors: BaseException) -> str:
    """Return a sentence with the wait that the provider asks for; an empty string if it asks for none."""
    seconds = wait_seconds(*errors)
    return "" if seconds is None else f" It asks to wait {math.ceil(seconds)} seconds."


def _seconds(given: str | None) -> float | None:
    """Return a `Retry-After` in seconds, whether it is a number or a date."""
    if given is None:
        return None
    if _NUMBER.fullmatch(given):
        return min(_MOST_WAIT_SECONDS, float(given))
    try:
        seconds = parsedate_to_datetime(given).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):
        return None
    return min(_MOST_WAIT_SECONDS, max(1, round(seconds)))


def _too_long() -> GenerationError:
    return GenerationError(
        "provider_context_length", "The input is too long for the model. Send less of the conversation."
    )


def _filtered() -> GenerationError:
    return GenerationError("provider_content_filter", "The model provider's content filter refused the request.")
