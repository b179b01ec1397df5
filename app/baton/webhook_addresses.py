"""The addresses of webhooks, and the secrets that sign their calls: what of both is valid.

A webhook's origin is its scheme, host and port. Only origins that the operator has listed are called: a URL comes from
a caller, and workers run inside the operator's network.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final
from urllib.parse import urlsplit

MAX_CHARACTERS: Final = 2000
SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what secrets begin with
_LEAST_BYTES: Final = 24
_MOST_BYTES: Final = 64
_PORTS: Final = {"https": 443, "http": 80}
# ASCII without spaces and control characters. Backslashes are slashes to some parsers.
_CHARACTERS: Final = re.compile(r"[!-\[\]-~]+")
_HOST: Final = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9])?|[0-9a-f:.]+")


def origin_of(url: str) -> str:
    """Return the origin of a webhook's URL, always with its port: `https://host:443`.

    Raises:
        ValueError: it is not a URL that can be called.
    """
    if len(url) > MAX_CHARACTERS or not _CHARACTERS.fullmatch(url):
        raise ValueError(f"it must be a URL of at most {MAX_CHARACTERS} ASCII characters without spaces")
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname or not _HOST.fullmatch(parts.hostname):
        raise ValueError("it must look like https://host/path")
    if "@" in parts.netloc:
        raise ValueError("it must not contain a user or a password: calls are signed instead")
    if "#" in url:
        raise ValueError("it must not contain a fragment")
    # `urlsplit` raises a ValueError for a port that is no number.
    port = _PORTS[parts.scheme] if parts.port is None else parts.port
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}"


def listed_origin(item: str) -> str:
    """Return the origin that an item of the list allows: a host, a host with a port, or an origin.

    Raises:
        ValueError: it is none of them.
    """
    try:
        url = item if "://" in item else f"https://{item}"
        if urlsplit(url).path.strip("/") or "?" in url:
            raise ValueError
        return origin_of(url)
    except ValueError:
        raise ValueError(
            "each must be a host, such as hooks.example.com or hooks.example.com:8443, or http://host:port"
        ) from None


def key_of(secret: str) -> bytes:
    """Return the key in a secret of Standard Webhooks.

    Raises:
        ValueError: it is not `whsec_` and 24 to 64 bytes in base64.
    """
    try:
        if not secret.startswith(SECRET_PREFIX):
            raise ValueError
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
        if not _LEAST_BYTES <= len(key) <= _MOST_BYTES:
            raise ValueError
    except (binascii.Error, ValueError):
        raise ValueError(
            f"each must be {SECRET_PREFIX} and {_LEAST_BYTES} to {_MOST_BYTES} bytes in base64: "
            "`baton keys webhook-secret` makes one"
        ) from None
    return key
