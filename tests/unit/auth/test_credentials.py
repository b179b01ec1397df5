"""Where a request carries its credential."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from baton.auth.credentials import Credential, find
from baton.errors import Forbidden, Unauthenticated

HEADER, COOKIE, QUERY = {"authorization": "Bearer h"}, {"baton_token": "c"}, {"token": "q"}


def found(
    method: str = "GET",
    headers: dict[str, str] | None = None,
    cookies: dict[str, str] | None = None,
    query: dict[str, str] | None = None,
    allowed: str = "https://nobody",
) -> tuple[str, str]:
    credential = find(method, Headers(headers or {}), cookies or {}, query or {}, allowed.__eq__)
    return credential.place, credential.value


def test_the_header_precedes_the_cookie_and_the_cookie_the_query() -> None:
    assert found(headers=HEADER, cookies=COOKIE, query=QUERY) == ("header", "h")
    assert found(cookies=COOKIE, query=QUERY) == ("cookie", "c")
    assert found(query=QUERY) == ("query", "q")
    assert found(headers={"Authorization": "BEARER  h"}) == ("header", "h")
    assert found(headers={"authorization": "Basic x"}, query=QUERY) == ("query", "q")
    assert found(headers={"authorization": "Bearer"}, query=QUERY) == ("header", "")


OURS = ("baton_1_2", "a.b.c")  # the forms of an API key and of a token


@pytest.mark.parametrize("key", OURS)
def test_x_api_key_takes_what_a_bearer_takes_and_comes_after_it(key: str) -> None:
    own = {"x-api-key": key}
    assert found(headers=own) == ("header", key)
    assert found(headers={"X-API-Key": f" {key} "}) == ("header", key)
    assert found(headers=own, cookies=COOKIE, query=QUERY) == ("header", key)
    assert found(headers=own | {"authorization": "Basic x"}) == ("header", key)
    assert found(headers=own | HEADER) == ("header", "h")
    assert found(headers=own | {"authorization": "Bearer"}) == ("header", "")


@pytest.mark.parametrize("key", ["lsv2_pt_x", "a.b", "x"])
def test_the_api_key_of_a_gateway_hides_no_other_credential(key: str) -> None:
    gateways = {"x-api-key": key}
    assert found(headers=gateways | HEADER) == ("header", "h")
    assert found(headers=gateways, cookies=COOKIE, query=QUERY) == ("cookie", "c")
    assert found(headers=gateways, query=QUERY) == ("query", "q")
    assert found(headers=gateways) == ("header", key)


@pytest.mark.parametrize(
    "headers",
    [{}, {"x-api-key": " "}, {"authorization": "Basic x"}, {"authorization": ""}, {"cookie": "baton_token=c"}],
)
def test_a_request_without_a_credential_gets_advice(headers: dict[str, str]) -> None:
    with pytest.raises(Unauthenticated, match="Authorization: Bearer"):
        found(headers=headers)


@pytest.mark.parametrize(
    ("origin", "host", "allowed", "taken"),
    [
        (None, "pod", "https://nobody", True),
        ("https://pod", "pod", "https://nobody", True),
        ("http://pod", "pod", "https://nobody", True),
        ("https://POD:443", "pod", "https://nobody", True),
        ("https://pod", "pod:443", "https://nobody", True),
        ("http://pod:8001", "pod:8001", "https://nobody", True),
        ("http://pod:8001", "pod:8002", "https://nobody", False),
        ("https://page", "pod", "https://page", True),
        ("https://page", "pod", "https://other", False),
        ("https://pod.evil", "pod", "https://nobody", False),
        ("https://evilpod", "pod", "https://nobody", False),
        ("null", "pod", "https://nobody", False),
        ("", "", "https://nobody", False),
        ("file://", "", "https://nobody", False),
        ("http://[", "pod", "https://nobody", False),
    ],
)
def test_a_cookie_can_write_only_from_our_own_pages(origin: str | None, host: str, allowed: str, taken: bool) -> None:
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    for method in ("GET", "HEAD", "OPTIONS"):
        assert found(method, headers, COOKIE, allowed=allowed) == ("cookie", "c")
    for method in ("POST", "DELETE", "PUT", "PATCH"):
        if taken:
            assert found(method, headers, COOKIE, allowed=allowed) == ("cookie", "c")
        else:
            with pytest.raises(Forbidden, match="another origin"):
                found(method, headers, COOKIE, allowed=allowed)
        assert found(method, headers | HEADER, COOKIE) == ("header", "h")
        assert found(method, headers | {"x-api-key": "a.b.c"}, COOKIE) == ("header", "a.b.c")


def test_the_repr_of_a_credential_hides_it() -> None:
    assert "secret" not in repr(Credential("secret", "header"))
