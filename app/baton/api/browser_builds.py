"""The npm package as one module for pages without a bundler: builds for browsers, each at an address with its version.

They are public, and the same for everyone: any page may load them, whatever origins may use the pod. A build never
changes once it is released, so browsers keep it. A pod also has the build of the release before, because pages name a
version and are deployed at other times than pods.
"""

from __future__ import annotations

import functools
from importlib import resources
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from ..errors import InternalError, NotHere
from ..version import __version__
from . import pages, problems
from .cross_origin import ALLOWED
from .request import AsgiResponse, common_headers
from .routing import Returns, Routes

FOLDER: Final = "browser"
NEWEST: Final = f"{__version__}.js"

_PUBLIC: Final = {ALLOWED: "*", "cross-origin-resource-policy": "cross-origin"}
_FOREVER: Final = "public, max-age=31536000, immutable"

ROUTES: Final = Routes("client", path={"file": {"type": "string", "minLength": 1, "pattern": r"^[^/]+$"}})


@functools.cache
def names() -> frozenset[str]:
    """Return the names of the builds that this release has."""
    files = resources.files(__package__).joinpath(FOLDER).iterdir()
    return frozenset(file.name for file in files if file.name.endswith(".js"))


@ROUTES.route(
    "GET",
    "/client.js",
    None,
    {302: Returns("The address of the build of this pod's release.")},
    refusals=(InternalError,),
)
async def newest_build(request: Request) -> AsgiResponse:
    """Redirect to the browser build of the npm package that belongs to this pod's release. It is not cached."""
    headers = common_headers(request) | _PUBLIC | {"location": problems.address(request, "build", file=NEWEST)}
    return Response(status_code=302, headers=headers)


@ROUTES.route(
    "GET",
    "/client/{file}",
    None,
    {200: Returns("The module.", {"text/javascript": "A module."})},
    refusals=(InternalError, NotHere),
    name="build",
)
async def build(request: Request) -> AsgiResponse:
    """Return a browser build of the npm package, such as `/client/1.2.3.js`: that of this release or the one before."""
    name = request.path_params["file"]
    if name not in names():
        known = ", ".join(sorted(names()))
        raise NotHere(f"There is no build {name!r:.80} of the client. The address serves {known}.")
    return pages.sent(request, pages.File.at(f"{FOLDER}/{name}"), {**_PUBLIC, "cache-control": _FOREVER})
