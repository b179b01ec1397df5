"""What a proxy has changed in a request, and that the addresses in answers need: the prefix, and the scheme.

A proxy that publishes Baton below `/api/ai`, and forwards `/api/ai/v1/streams` as `/v1/streams`, says so in
`X-Forwarded-Prefix`, or the setting `BATON_PATH_PREFIX` does. Any client can send that header, so it counts only from
trusted peers. It affects only the answer to that request.
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
SCHEME_HEADER: Final = b"x-forwarded-proto"
_HOST: Final = re.compile(rb"[A-Za-z0-9.\-_]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")


def before(scope: Mapping[str, Any], settings: Settings) -> str:
    """Return what precedes Baton's own paths in the addresses of an answer, percent-encoded; often empty.

    That is the prefix that proxies have stripped, and then the path where the app is mounted. If the server has the
    prefix as its `root_path`, it is not repeated.
    """
    root: str = scope.get("root_path", "")
    prefix = _stripped(scope, settings)
    # The path of a mounted app follows the server's own, which `app_root_path` keeps.
    servers: str = scope.get("app_root_path", root)
    known = servers == prefix or servers.startswith(f"{prefix}/")
    return quote(root) if known else prefix + quote(root)


def origin(scope: Mapping[str, Any], settings: Settings) -> str:
    """Return the scheme and the host by which a client reaches this pod; an empty string if it names no host.

    The scheme is the one in `X-Forwarded-Proto` if the peer is trusted. The host is what the client sent, so only the
    answer to its own request may have it.
    """
    hosts = _values(scope, b"host")
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        return ""
    schemes = _values(scope, SCHEME_HEADER)
    scheme: str = scope.get("scheme", "http")
    if len(schemes) == 1 and schemes[0] in {b"http", b"https"} and _trusts(scope, settings):
        scheme = schemes[0].decode()
    return f"{scheme}://{hosts[0].decode()}"


def _stripped(scope: Mapping[str, Any], settings: Settings) -> str:
    """Return the prefix in the header if the peer is trusted, otherwise the setting."""
    given = _values(scope, HEADER)
    # Several proxies may each have added such a header, in an unknown order.
    if len(given) != 1 or not _trusts(scope, settings):
        return settings.path_prefix
    text = given[0].decode("latin-1")
    return text.rstrip("/") if re.fullmatch(PATH_PREFIX, text) else settings.path_prefix


def _values(scope: Mapping[str, Any], header: bytes) -> list[bytes]:
    return [value for name, value in scope.get("headers", ()) if name == header]


def _trusts(scope: Mapping[str, Any], settings: Settings) -> bool:
    return _is_trusted(scope.get("client"), settings.trusted_proxies)


def _is_trusted(client: Iterable[Any] | None, trusted: frozenset[str]) -> bool:
    if not trusted or "*" in trusted:
        return bool(trusted)
    host = next(iter(client or ()), None)
    return isinstance(host, str) and _is_among(host, trusted)


@functools.lru_cache(maxsize=256)
def _is_among(host: str, trusted: frozenset[str]) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # the path of a socket, or a placeholder of a server
        return False
    # A dual-stack socket has IPv4 addresses in this form.
    peer = getattr(address, "ipv4_mapped", None) or address
    return any(peer in ipaddress.ip_network(network) for network in trusted)
