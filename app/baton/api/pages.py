"""Pages for people: HTML files of the package, with their style and modules.

They are public and hold no data. They fetch what they show with a key that the user types in.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from ..errors import NotHere
from ..version import __version__
from . import problems
from .request import AsgiResponse, common_headers

_TYPES: Final = {
    "css": "text/css",
    "html": "text/html",
    "js": "text/javascript",
    "md": "text/markdown",
    "svg": "image/svg+xml",
}

# The npm package's build has addresses of its own, too (`browser_builds`). Pages ask for this one, which every pod has
# while releases are exchanged.
_ELSEWHERE: Final = {"baton-stream.js": f"browser/{__version__}.js"}

# Only our own files, and no text may become code or markup: the content of streams is not trusted.
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
    """One file, and the tag by which browsers know whether they have it."""

    content: bytes
    media_type: str
    etag: str

    @classmethod
    @functools.cache
    def named(cls, name: str) -> File:
        """Read a file of the pages."""
        return cls.at(_ELSEWHERE.get(name, f"pages/{name}"))

    @classmethod
    @functools.cache
    def at(cls, path: str) -> File:
        """Read a file of the package, by its path in this folder."""
        content = resources.files(__package__).joinpath(path).read_bytes()
        return cls(content, _TYPES[path.rpartition(".")[2]], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def answer(request: Request, name: str, among: Collection[str]) -> AsgiResponse:
    """Answer with a file if it is `among` those allowed, or with 304 if the client has it.

    Browsers ask each time, so that after an upgrade they do not run old modules with the new page.

    Raises:
        NotHere: it is not allowed.
    """
    if name not in among:
        raise NotHere(f"No route for {problems.path_of(request):.200}.")
    page = {"content-security-policy": _POLICY, "cross-origin-opener-policy": "same-origin"}
    return sent(request, File.named(name), {"cache-control": "no-cache"} | (page if name.endswith(".html") else {}))


def sent(request: Request, file: File, headers: Mapping[str, str]) -> AsgiResponse:
    """Answer with a file, or with 304 if the client has it."""
    headers = {**common_headers(request), **headers, "etag": file.etag}
    if file.etag in [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
