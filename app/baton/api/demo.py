"""The demo's page: it asks, watches the answer, and kills the pod that serves it.

These routes exist in demo mode only (`BATON_DEMO`). A kill is taken from a page of this pod on this machine, and from
nobody else.
"""

from __future__ import annotations

import ipaddress
import time
from typing import Final
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from ..db import event_log, notifications
from ..db.notifications import KILL_CHANNEL
from ..db.postgres import translated
from ..errors import Forbidden
from . import pages
from .request import Answer, common_headers, pod_of
from .request_body import parse_json, read_body
from .routing import Routes
from .validation import validated

FILES: Final = frozenset({"demo.js"})


class KillPod(BaseModel):
    """The body of `POST /demo/kill`: the pod's name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    pod: str


ROUTES: Final = Routes("demo")


@ROUTES.undocumented("/demo", None)
async def demo(request: Request) -> Answer:
    """Give the demo's page."""
    return pages.answer(request, "demo.html", {"demo.html"})


@ROUTES.undocumented("/demo/kill", None, methods=("POST",))
async def kill(request: Request) -> Answer:
    """Have a pod killed, by SIGKILL: this one or another, which is told through the database as all pods are."""
    _require_own_page(request)
    name = validated(KillPod, parse_json(await read_body(request))).pod
    pod = pod_of(request)
    async with translated(pod.pool):
        payload = pod.trust.seal(KILL_CHANNEL, name, notifications.stamp_of(time.time()))
        await event_log.hint(pod.pool, KILL_CHANNEL, [payload])
    return Response(status_code=202, headers=common_headers(request))


@ROUTES.undocumented("/demo/{name}", None)
async def asset(request: Request) -> Answer:
    """Give a file of the demo's page."""
    return pages.answer(request, request.path_params["name"], FILES)


def _require_own_page(request: Request) -> None:
    """Raise Forbidden unless a page of this very origin asks, and the origin is this machine.

    Another site's page may send a POST here, and may have its own name lead to this machine: so both names count.
    """
    origin, host = request.headers.get("origin", ""), request.headers.get("host", "")
    client = "" if request.client is None else request.client.host
    if not (_is_loopback(client) and origin == f"http://{host}" and _is_loopback(urlsplit(origin).hostname or "")):
        raise Forbidden("Only the demo's own page, on this machine, kills pods.")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
