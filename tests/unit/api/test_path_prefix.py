"""Addresses in answers where a proxy has taken a part of the path off."""

from __future__ import annotations

from typing import Any

import pytest

from baton.api.path_prefix import before, origin
from baton.errors import ConfigurationError
from baton.settings import Settings

TRUSTING = {"trusted_proxies": "10.0.0.0/8, 192.0.2.7, 2001:db8::/32"}


def scope(*prefixes: str, client: str | None = "10.1.2.3", **given: Any) -> dict[str, Any]:
    headers = [(b"host", b"here"), *((b"x-forwarded-prefix", prefix.encode("latin-1")) for prefix in prefixes)]
    return {"headers": headers, "client": client and (client, 80), **given}


def test_without_a_proxy_the_prefix_is_the_mount_path() -> None:
    assert before(scope(), Settings.load()) == ""
    assert before(scope(root_path="/a b", app_root_path=""), Settings.load()) == "/a%20b"
    assert before({}, Settings.load()) == ""


@pytest.mark.parametrize("client", ["10.255.0.1", "192.0.2.7", "2001:db8::1", "::ffff:10.0.0.1"])
def test_a_trusted_proxy_names_the_prefix_that_it_removed(client: str) -> None:
    assert before(scope("/api", client=client), Settings.load(**TRUSTING)) == "/api"
    # Which is more than a setting knows, for instance of a second proxy.
    assert before(scope("/api/", client=client), Settings.load(path_prefix="/other", **TRUSTING)) == "/api"
    assert before(scope("/", client=client), Settings.load(path_prefix="/other", **TRUSTING)) == ""


@pytest.mark.parametrize("client", ["192.0.2.8", "11.0.0.1", "2001:db9::1", "::ffff:11.0.0.1", "testclient", "", None])
def test_other_peers_cannot_name_a_prefix(client: str | None) -> None:
    assert before(scope("/api", client=client), Settings.load(**TRUSTING)) == ""
    assert before(scope("/api", client=client), Settings.load(path_prefix="/set", **TRUSTING)) == "/set"
    assert before(scope("/api", client=client), Settings.load()) == ""


@pytest.mark.parametrize("client", ["203.0.113.1", None])
def test_every_peer_can_be_trusted(client: str | None) -> None:
    assert before(scope("/api", client=client), Settings.load(trusted_proxies="*")) == "/api"


HOSTILE = [
    *("//evil.com", "/\\evil.com", "\\\\evil.com", "https://evil.com", "javascript:alert(1)", "evil", "/a//b", "/."),
    *("/a/..", "/../b", "/a/./b", "/%2e%2e/b", "/a%0d%0aSet-Cookie:x", "/a\r\nb", "/a b", "/a?b", "/a#b"),
    *("/a,/b", "/a, /b", "/a;b", "/ä", "/a'b", '/a"b', "/<b>", "/a\0", "/a" * 33),
]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_malformed_prefix_is_ignored_and_refused_as_a_setting(value: str) -> None:
    assert before(scope(value), Settings.load(path_prefix="/set", **TRUSTING)) == "/set"
    with pytest.raises(ConfigurationError, match="BATON_PATH_PREFIX: it must look like /api/ai"):
        Settings.load(path_prefix=value)


def test_a_final_line_break_is_dropped_from_a_setting_but_not_a_header() -> None:
    assert before(scope("/a\n"), Settings.load(path_prefix="/set\n", **TRUSTING)) == "/set"


def test_two_prefix_headers_are_both_ignored() -> None:
    assert before(scope("/a", "/b"), Settings.load(**TRUSTING)) == ""


@pytest.mark.parametrize(
    ("given", "found"), [("", ""), ("/", ""), ("/api", "/api"), ("/api/", "/api"), ("/a.b/~c_d-e", "/a.b/~c_d-e")]
)
def test_a_setting_can_name_the_prefix(given: str, found: str) -> None:
    assert before(scope(), Settings.load(path_prefix=given)) == found


@pytest.mark.parametrize(
    ("servers", "mount", "whole"),
    [
        ("", "/ai", "/api/ai"),  # uvicorn without --root-path
        ("/api", "/ai", "/api/ai"),  # with it: it is not repeated
        ("/api", "", "/api"),
        ("", "/api", "/api/api"),  # the mount is called the same
        ("/apis", "/ai", "/api/apis/ai"),
        ("/api/inner", "/ai", "/api/inner/ai"),
    ],
)
def test_the_server_and_mount_prefixes_follow_once(servers: str, mount: str, whole: str) -> None:
    given = scope("/api", root_path=servers + mount, app_root_path=servers)
    assert before(given, Settings.load(**TRUSTING)) == whole
    del given["app_root_path"]
    if not mount:
        assert before(given, Settings.load(**TRUSTING)) == whole


@pytest.mark.parametrize("value", ["example.com", "10.0.0.1/8", "10.0.0.0/99", "10.0.0.0/8;", "*.*"])
def test_proxies_are_addresses_and_networks(value: str) -> None:
    with pytest.raises(ConfigurationError, match="BATON_TRUSTED_PROXIES: each must be an address or a network"):
        Settings.load(trusted_proxies=value)


def asked(host: bytes | None, proto: bytes | None = None, **given: Any) -> dict[str, Any]:
    headers = [(b"host", host), (b"x-forwarded-proto", proto)]
    known = [(name, value) for name, value in headers if value is not None]
    return {"headers": known, "client": ("10.1.2.3", 80), "scheme": "http", **given}


def test_the_origin_is_the_host_that_the_client_named() -> None:
    for host in (b"example.com", b"localhost:8001", b"[::1]:80", b"10.0.0.1"):
        assert origin(asked(host), Settings.load()) == f"http://{host.decode()}"
    for odd in (None, b"", b"a b", b"x/..", b"x@y", b"x:123456", b"x\r\ny", b"\xff"):
        assert origin(asked(odd), Settings.load()) == ""
    twice = {"headers": [(b"host", b"a"), (b"host", b"b")]}
    assert origin(twice, Settings.load()) == ""


def test_only_a_trusted_proxy_names_the_scheme() -> None:
    assert origin(asked(b"x", b"https"), Settings.load(**TRUSTING)) == "https://x"
    assert origin(asked(b"x", b"javascript"), Settings.load(**TRUSTING)) == "http://x"
    assert origin(asked(b"x", b"https", client=("192.0.2.8", 1)), Settings.load(**TRUSTING)) == "http://x"
    assert origin(asked(b"x", b"https"), Settings.load()) == "http://x"
