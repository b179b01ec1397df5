"""The demo's page: it asks a question, shows the answer, and kills the pod that serves it or the worker that writes it.

These routes exist only in demo mode (`BATON_DEMO`). Only a page of this pod, on this machine, can kill a process.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Mapping
from typing import Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from ..db import notifications, worker_rows
from ..db.notifications import KILL_CHANNEL, KILL_WORKER_CHANNEL
from ..db.postgres import translated
from ..errors import Forbidden
from . import pages
from .request import AsgiResponse, common_headers, json_answer, parse_stream_id, pod_of, pool_of
from .request_body import parse_json, read_body
from .routing import Routes
from .validation import validated

FILES: Final = frozenset({"demo.js"})
CHANNELS: Final[Mapping[str, str]] = {"pod": KILL_CHANNEL, "worker": KILL_WORKER_CHANNEL}


class Kill(BaseModel):
    """The body of `POST /demo/kill`: which process dies."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["pod", "worker"]
    name: str


ROUTES: Final = Routes("demo")


@ROUTES.undocumented("/demo", None)
async def demo(request: Request) -> AsgiResponse:
    """Return the demo's page."""
    return pages.answer(request, "demo.html", {"demo.html"})


@ROUTES.undocumented("/demo/kill", None, methods=("POST",))
async def kill(request: Request) -> AsgiResponse:
    """Kill a pod or a worker with SIGKILL, by a notification that all of its kind get. A pod may kill itself."""
    _require_own_page(request)
    wanted = validated(Kill, parse_json(await read_body(request)))
    pod = pod_of(request)
    for shard in pod.shards.open:
        async with translated(shard.pool):
            channel, keys = CHANNELS[wanted.role], shard.verifier.keys
            await notifications.announce_kill(shard.pool, channel, wanted.name, time.time(), keys)
    return Response(status_code=202, headers=common_headers(request))


@ROUTES.undocumented("/demo/streams/{id}", None)
async def writer(request: Request) -> AsgiResponse:
    """Return the name of the worker that writes a stream now; null if none does."""
    stream_id = parse_stream_id(request.path_params["id"])
    pool = pool_of(request, stream_id)
    async with translated(pool):
        return json_answer(request, {"worker": await worker_rows.name_of_writer(pool, stream_id)})


@ROUTES.undocumented("/demo/{name}", None)
async def asset(request: Request) -> AsgiResponse:
    """Return a file of the demo's page."""
    return pages.answer(request, request.path_params["name"], FILES)


def _require_own_page(request: Request) -> None:
    """Raise Forbidden unless a page of this origin asks, and the origin is this machine.

    A page of another site can send a POST here, and its domain can resolve to this machine: so both are checked.
    """
    origin, host = request.headers.get("origin", ""), request.headers.get("host", "")
    client = "" if request.client is None else request.client.host
    if not (_is_loopback(client) and origin == f"http://{host}" and _is_loopback(urlsplit(origin).hostname or "")):
        raise Forbidden("Only the demo's own page, on this machine, can kill pods and workers.")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
