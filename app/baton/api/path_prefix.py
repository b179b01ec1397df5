"""The part of an address's path that a proxy has taken off, and that the addresses in answers need.

A proxy that publishes Baton below `/api/ai` and passes `/api/ai/v1/streams` on as `/v1/streams` says so in
`X-Forwarded-Prefix`, or the setting `BATON_PATH_PREFIX` does. Anybody can send that header, so it counts only from
trusted peers. What it says goes into answers of that request alone.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote

from ..settings import PATH_PREFIX, Settings

HEADER: Final = b"x-forwarded-prefix"


def before(scope: Mapping[str, Any], settings: Settings) -> str:
    """Return what precedes Baton's own paths in the addresses of an answer, percent-encoded; often empty.

    That is what proxies have taken off, and then the path that the app is mounted under. Where the server was given
    the former as its `root_path`, it is not repeated.
    """
    root: str = scope.get("root_path", "")
    prefix = _taken_off(scope, settings)
    # What an app is mounted under comes behind the server's own, which `app_root_path` keeps.
    servers: str = scope.get("app_root_path", root)
    known = servers == prefix or servers.startswith(f"{prefix}/")
    return quote(root) if known else prefix + quote(root)


def _taken_off(scope: Mapping[str, Any], settings: Settings) -> str:
    """Return what the header says if its peer is trusted, else what the setting does."""
    given: list[bytes] = [value for name, value in scope.get("headers", ()) if name == HEADER]
    # Of several proxies each may have added one, and nobody says in which order.
    if len(given) != 1 or not _is_trusted(scope.get("client"), settings.trusted_proxies):
        return settings.path_prefix
    text = given[0].decode("latin-1")
    return text.rstrip("/") if re.fullmatch(PATH_PREFIX, text) else settings.path_prefix


def _is_trusted(client: Iterable[Any] | None, trusted: frozenset[str]) -> bool:
    if not trusted or "*" in trusted:
        return bool(trusted)
    host = next(iter(client or ()), None)
    return isinstance(host, str) and _is_among(host, trusted)


@functools.lru_cache(maxsize=256)
def _is_among(host: str, trusted: frozenset[str]) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a socket's path, or a name that a server made up
        return False
    # As a socket for both versions has addresses of IPv4.
    peer = getattr(address, "ipv4_mapped", None) or address
    return any(peer in ipaddress.ip_network(network) for network in trusted)
