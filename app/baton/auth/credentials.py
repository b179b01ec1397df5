"""Where a request carries its credential: `Authorization`, `X-Api-Key`, a cookie, or the query, in that order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from ..errors import Forbidden, Unauthenticated

# The header of Anthropic's and LangGraph's clients. It takes whatever `Authorization: Bearer` takes.
API_KEY_HEADER: Final = "x-api-key"
COOKIE: Final = "baton_token"
QUERY: Final = "token"
MAX_CHARACTERS: Final = 8192

_KEY_PREFIX: Final = "baton_"

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_DEFAULT_PORTS: Final = (":80", ":443")


@dataclass(frozen=True, slots=True)
class Credential:
    """A credential of a request, not checked yet."""

    value: str
    place: Literal["header", "cookie", "query"]

    def __repr__(self) -> str:
        """Return its place, without its value."""
        return f"Credential({self.place})"


def find(
    method: str,
    headers: Mapping[str, str],
    cookies: Mapping[str, str],
    query: Mapping[str, str],
    origin_allowed: Callable[[str], bool],
) -> Credential:
    """Return a request's credential. The names of `headers` must ignore case.

    Raises:
        Unauthenticated: it has none.
        Forbidden: a page of another site makes a browser send its cookie with a request that changes something.
    """
    found = look(headers, cookies, query)
    if found is None:
        raise Unauthenticated(
            "This needs a credential: an API key or a token in `Authorization: Bearer …` or `X-Api-Key`, or a stream's "
            f"token in the cookie {COOKIE} or in `?{QUERY}=`."
        )
    if found.place == "cookie" and method not in _SAFE_METHODS and _is_foreign(headers, origin_allowed):
        raise Forbidden(
            "The cookie is not accepted from a page of another origin. Send the token in `Authorization: Bearer …`."
        )
    return found


def look(headers: Mapping[str, str], cookies: Mapping[str, str], query: Mapping[str, str]) -> Credential | None:
    """Return a request's credential, or None. The names of `headers` must ignore case."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    # Other schemes are for a proxy.
    if scheme.lower() == "bearer":
        return Credential(value.strip(), "header")
    api_key = headers.get(API_KEY_HEADER, "").strip()
    if _could_be_ours(api_key):
        return Credential(api_key, "header")
    if COOKIE in cookies:
        return Credential(cookies[COOKIE], "cookie")
    if QUERY in query:
        return Credential(query[QUERY], "query")
    return Credential(api_key, "header") if api_key else None


def is_jwt(value: str) -> bool:
    """Whether a credential has the form of a JWT."""
    return value.count(".") == 2


def _could_be_ours(api_key: str) -> bool:
    """Whether an `X-Api-Key` has the form of a credential. Another one may be the key of a gateway before the pod."""
    return api_key.startswith(_KEY_PREFIX) or is_jwt(api_key)


def require_own_page(method: str, headers: Mapping[str, str], origin_allowed: Callable[[str], bool]) -> None:
    """For a caller that an application has authenticated, refuse a change that a page of another origin sends.

    The application may have used its session cookie, which browsers send with such a request.

    Raises:
        Forbidden: the request is a change from a page of another origin, and its origin is not allowed.
    """
    if method in _SAFE_METHODS:
        return
    unnamed = "origin" not in headers and headers.get("sec-fetch-site") == "cross-site"
    if unnamed or _is_foreign(headers, origin_allowed):
        raise Forbidden(
            "A page of another origin cannot change anything here with the session of this one.",
            operator="if the page is yours, name its origin in BATON_ALLOWED_ORIGINS",
        )


def require_allowed_page(method: str, headers: Mapping[str, str], origin_allowed: Callable[[str], bool]) -> None:
    """Without access control, refuse a change that a page of another site makes a browser send.

    A browser can reach pods that the rest of the web cannot, such as those on its own machine.

    Raises:
        Forbidden: the request is a change from a page of another site, and its origin is not allowed.
    """
    elsewhere = headers.get("sec-fetch-site") == "cross-site"
    if method in _SAFE_METHODS or not elsewhere or origin_allowed(headers.get("origin", "")):
        return
    raise Forbidden(
        "A page of another site cannot change anything here: its origin is not allowed.",
        operator="if the page is yours, name its origin in BATON_ALLOWED_ORIGINS",
    )


def _is_foreign(headers: Mapping[str, str], origin_allowed: Callable[[str], bool]) -> bool:
    """Whether a page of another origin sends a request, and that origin is not allowed."""
    origin = headers.get("origin")
    return not (origin is None or origin_allowed(origin) or _same_host(origin, headers.get("host", "")))


def _same_host(origin: str, host: str) -> bool:
    # Behind a proxy a pod does not know the scheme, so the default ports of http and https both count as no port.
    try:
        place = urlsplit(origin).netloc.lower()
    except ValueError:
        return False
    return place != "" and _without_default_port(place) == _without_default_port(host.lower())


def _without_default_port(place: str) -> str:
    for port in _DEFAULT_PORTS:
        place = place.removesuffix(port)
    return place
