"""Where a request carries its credential: the header `Authorization`, a cookie, or the query, in that order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from ..errors import Forbidden, Unauthenticated

COOKIE: Final = "baton_token"
QUERY: Final = "token"
MAX_CHARACTERS: Final = 8192

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_DEFAULT_PORTS: Final = (":80", ":443")


@dataclass(frozen=True, slots=True)
class Credential:
    """What a request shows of its maker, unchecked."""

    value: str
    place: Literal["header", "cookie", "query"]

    def __repr__(self) -> str:
        """Say where it was, and not what it is."""
        return f"Credential({self.place})"


def find(
    method: str,
    headers: Mapping[str, str],
    cookies: Mapping[str, str],
    query: Mapping[str, str],
    origin_allowed: Callable[[str], bool],
) -> Credential:
    """Return a request's credential. `headers` must be found whatever their case.

    Raises:
        Unauthenticated: it has none.
        Forbidden: another site's page has a browser send its cookie with a request that changes something.
    """
    scheme, _, value = headers.get("authorization", "").partition(" ")
    # What has another scheme is for a proxy on the way.
    if scheme.lower() == "bearer":
        return Credential(value.strip(), "header")
    if COOKIE in cookies:
        if method not in _SAFE_METHODS:
            _require_own_page(headers, origin_allowed)
        return Credential(cookies[COOKIE], "cookie")
    if QUERY in query:
        return Credential(query[QUERY], "query")
    raise Unauthenticated(
        "This needs a credential: an API key or a token in `Authorization: Bearer …`, or a stream's token in the "
        f"cookie {COOKIE} or in `?{QUERY}=`."
    )


def require_welcome_page(method: str, headers: Mapping[str, str], origin_allowed: Callable[[str], bool]) -> None:
    """Where no credential is asked for: refuse what any page on the web could have a browser change here.

    A browser reaches pods that the rest of the web does not, such as those on its own machine.

    Raises:
        Forbidden: another site's page asks for a change, and its origin is not allowed.
    """
    elsewhere = headers.get("sec-fetch-site") == "cross-site"
    if method in _SAFE_METHODS or not elsewhere or origin_allowed(headers.get("origin", "")):
        return
    raise Forbidden(
        "A page of another site, which a person may have opened without knowing what it does, can change nothing here. "
        "The origin of the page is not allowed.",
        operator="if the page is yours, name its origin in BATON_ALLOWED_ORIGINS",
    )


def _require_own_page(headers: Mapping[str, str], origin_allowed: Callable[[str], bool]) -> None:
    origin = headers.get("origin")
    if origin is None or origin_allowed(origin) or _same_host(origin, headers.get("host", "")):
        return
    raise Forbidden(
        "A cookie is not taken from the page of another origin, which a person may have opened without knowing what it "
        "does. Send the token in `Authorization: Bearer …`."
    )


def _same_host(origin: str, host: str) -> bool:
    # Behind a proxy a pod knows no scheme, so that the default ports of both count as none.
    try:
        place = urlsplit(origin).netloc.lower()
    except ValueError:
        return False
    return place != "" and _without_default_port(place) == _without_default_port(host.lower())


def _without_default_port(place: str) -> str:
    for port in _DEFAULT_PORTS:
        place = place.removesuffix(port)
    return place
