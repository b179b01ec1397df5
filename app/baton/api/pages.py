"""Pages for people, which browsers get as they lie in the package: HTML, and the style and modules that it asks for.

They hold nothing that is not public. Whatever they show they ask for by themselves, with a key that a person types in.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from importlib import resources
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from ..errors import NotHere
from . import problems
from .request import AsgiResponse, common_headers

_TYPES: Final = {
    "css": "text/css",
    "html": "text/html",
    "js": "text/javascript",
    "md": "text/markdown",
    "svg": "image/svg+xml",
}

# Own files only, and no text is ever taken for code or markup: that which streams hold comes from anywhere.
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)


@dataclass(frozen=True, slots=True)
class File:
    """One file, and what tells browsers whether they have it already."""

    content: bytes
    media_type: str
    etag: str

    @classmethod
    @functools.cache
    def named(cls, name: str) -> File:
        """Read a file of the package."""
        content = resources.files(__package__).joinpath("pages", name).read_bytes()
        return cls(content, _TYPES[name.rpartition(".")[2]], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def answer(request: Request, name: str, among: Collection[str]) -> AsgiResponse:
    """Answer with a file that is one of these, or with 304 if the client has it.

    Browsers ask each time: after an upgrade they are not to run the old modules with the new page.

    Raises:
        NotHere: it is none of them.
    """
    if name not in among:
        raise NotHere(f"There is no {problems.path_of(request):.200} here.")
    file = File.named(name)
    headers = common_headers(request) | {"cache-control": "no-cache", "etag": file.etag}
    if name.endswith(".html"):
        headers |= {"content-security-policy": _POLICY, "cross-origin-opener-policy": "same-origin"}
    if file.etag in [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
