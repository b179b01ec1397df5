"""What an exception of a model provider's SDK means: the same in a custom generator as in a built-in one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest

from baton.errors import GenerationError
from baton.generators import as_generation_error

pydantic_ai = pytest.importorskip("pydantic_ai.exceptions", reason="it needs newer releases than the oldest")

REQUEST = httpx2.Request("POST", "https://api.provider.test/v1")
KEY = "sk-test-0123456789abcdef0123456789abcdef"


def answer(status: int, **headers: str) -> httpx2.Response:
    return httpx2.Response(status, headers=headers, request=REQUEST)


def of_openai(kind: Any, status: int, *, body: object = None, **headers: str) -> Exception:
    error: Exception = kind(f"at https://10.0.0.9/x with {KEY}", response=answer(status, **headers), body=body)
    return error


class RateLimitError(openai.RateLimitError):
    """As LiteLLM has them: its own class of the same name, of OpenAI's."""


class ContextWindowExceededError(openai.BadRequestError):
    """As LiteLLM has it."""


def raised_from(outer: Exception, cause: BaseException) -> Exception:
    with pytest.raises(type(outer)) as caught:
        raise outer from cause
    return caught.value


def while_handling(outer: Exception, first: Exception) -> Exception:
    outer.__context__ = first
    return outer


LIMITED = of_openai(openai.RateLimitError, 429, **{"retry-after": "20"})

KNOWN: dict[str, tuple[BaseException, str, str]] = {
    "rate limit": (LIMITED, "provider_rate_limited", "It asks to wait 20 seconds."),
    "rate limit, a fraction": (
        of_openai(openai.RateLimitError, 429, **{"retry-after": "1.5"}),
        "provider_rate_limited",
        "It asks to wait 2 seconds.",
    ),
    "rate limit, no header": (of_openai(anthropic.RateLimitError, 429), "provider_rate_limited", "limiting requests."),
    "authentication": (of_openai(openai.AuthenticationError, 401), "provider_auth_failed", "refused the credentials"),
    "permission": (of_openai(anthropic.PermissionDeniedError, 403), "provider_auth_failed", "refused the credentials"),
    "bad request": (
        of_openai(openai.BadRequestError, 400, body={"message": f"Bad tool: {KEY}"}),
        "provider_invalid_request",
        "(status 400): Bad tool: …",
    ),
    "context length": (
        of_openai(openai.BadRequestError, 400, body={"code": "context_length_exceeded", "message": "x"}),
        "provider_context_length",
        "too long for the model",
    ),
    "context length, Anthropic": (
        of_openai(
            anthropic.BadRequestError,
            400,
            body={"error": {"type": "invalid_request_error", "message": "prompt is too long: 9 tokens > 8 maximum"}},
        ),
        "provider_context_length",
        "too long for the model",
    ),
    "content filter": (
        of_openai(openai.BadRequestError, 400, body={"code": "content_filter", "message": "x"}),
        "provider_content_filter",
        "content filter",
    ),
    "content filter, at the end": (openai.ContentFilterFinishReasonError(), "provider_content_filter", "filter"),
    "server": (of_openai(openai.InternalServerError, 503), "provider_error", "failed with status 503."),
    "overloaded": (of_openai(anthropic.InternalServerError, 529), "provider_error", "failed with status 529."),
    "connection": (openai.APIConnectionError(request=REQUEST), "provider_unreachable", "cannot be reached"),
    "timeout": (anthropic.APITimeoutError(request=REQUEST), "provider_timeout", "did not answer in time"),
    "reported": (openai.APIError("x", REQUEST, body=None), "provider_error", "request to the model provider failed"),
    "LiteLLM": (of_openai(RateLimitError, 429, **{"retry-after": "3"}), "provider_rate_limited", "wait 3 seconds"),
    "LiteLLM, context": (of_openai(ContextWindowExceededError, 400), "provider_context_length", "too long"),
    "wrapped": (raised_from(ValueError("x"), raised_from(RuntimeError("y"), LIMITED)), "provider_rate_limited", "20"),
    "grouped": (
        ExceptionGroup("tasks", [ValueError("x"), ExceptionGroup("more", [LIMITED])]),
        "provider_rate_limited",
        "20",
    ),
    "our own, grouped": (
        BaseExceptionGroup("tasks", [GenerationError("tired", "The model is tired.")]),
        "tired",
        "The model is tired.",
    ),
    "Pydantic AI": (
        raised_from(pydantic_ai.ModelHTTPError(429, "gpt-5", None), LIMITED),
        "provider_rate_limited",
        "It asks to wait 20 seconds.",
    ),
    "Pydantic AI, connection": (
        raised_from(pydantic_ai.ModelAPIError("gpt-5", "x"), openai.APIConnectionError(request=REQUEST)),
        "provider_unreachable",
        "cannot be reached",
    ),
    "Pydantic AI, fallbacks": (
        pydantic_ai.FallbackExceptionGroup("all", [pydantic_ai.ModelHTTPError(401, "gpt-5", None)]),
        "provider_auth_failed",
        "refused the credentials",
    ),
}

UNKNOWN: dict[str, BaseException] = {
    "a mistake": ValueError("x"),
    "a mistake in handling": while_handling(NameError("x"), LIMITED),
    "no key": openai.OpenAIError("The api_key must be set."),
    "a tool's HTTP": httpx.ConnectError("x"),
    "a limit of the program": pydantic_ai.UsageLimitExceeded("x"),
    "a tool": pydantic_ai.ModelRetry("x"),
    "a timeout of the program": TimeoutError(),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_exceptions_become_error_codes(name: str) -> None:
    error, code, said = KNOWN[name]
    found = as_generation_error(error, http=False)
    assert found is not None
    assert found.code == code
    assert said in found.message
    assert KEY not in found.message
    assert "10.0.0.9" not in found.message


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_exceptions_stay_unexpected(name: str) -> None:
    assert as_generation_error(UNKNOWN[name], http=False) is None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (httpx.ConnectError("x"), "provider_unreachable"),
        (httpx2.ReadTimeout("x"), "provider_timeout"),
        (httpx2.HTTPStatusError("x", request=REQUEST, response=answer(429)), "provider_rate_limited"),
        (ValueError("x"), None),
    ],
)
def test_an_http_error_counts_as_the_providers_if_the_generator_says_so(error: Exception, code: str | None) -> None:
    found = as_generation_error(error)
    assert (found and found.code) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (openai.APIConnectionError(request=REQUEST), "provider_cut_off"),
        (openai.APITimeoutError(request=REQUEST), "provider_timeout"),
        (openai.APIError("x", REQUEST, body={"code": "server_error"}), "provider_error"),
        (LIMITED, "provider_rate_limited"),
    ],
)
def test_during_an_answer_a_lost_connection_has_cut_it_off(error: Exception, code: str) -> None:
    found = as_generation_error(error, begun=True)
    assert found is not None
    assert found.code == code
    if code != "provider_rate_limited":
        assert "during the answer" in found.message


def test_a_retry_after_date_becomes_seconds() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=3600), usegmt=True)
    found = as_generation_error(of_openai(openai.RateLimitError, 429, **{"retry-after": later}))
    assert found is not None
    assert 3500 < int("".join(filter(str.isdigit, found.message))) <= 3600


@pytest.mark.parametrize("make", [lambda error: error, lambda error: raised_from(ValueError(), error)])
def test_circular_exception_chains_are_followed_once(make: Callable[[Exception], Exception]) -> None:
    error = ValueError("x")
    error.__cause__ = make(error)
    assert as_generation_error(error) is None


def test_reading_an_exception_imports_no_sdk() -> None:
    code = (
        "import sys, baton.worker.run, baton.worker.worker\n"
        "print(sorted({'openai', 'anthropic', 'httpx'} & sys.modules.keys()))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
