"""Routes for the platform: liveness, readiness, metrics."""

from __future__ import annotations

from typing import Final, Literal, NotRequired

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from ..errors import InternalError, Unavailable
from .refusals import GUARDED
from .request import AsgiResponse, common_headers, json_answer, pod_of
from .routing import JSON, TEXT, Returns, Routes


class Health(TypedDict):
    """A process that is alive."""

    status: Literal["alive"]


class Readiness(TypedDict):
    """Whether clients should be sent to this pod. `disk_full`: the database's disk is full; pods still send.

    `databases`: which of several databases answer; the pod is ready while one does. `worker`: the state of the worker
    in the pod's process, if there is one.
    """

    status: Literal["ready", "not ready"]
    draining: bool
    full: bool
    disk_full: bool
    listener: str
    databases: NotRequired[dict[str, Literal["ready", "not ready"]]]
    worker: NotRequired[Literal["ready", "not ready"]]


ROUTES: Final = Routes("platform")


@ROUTES.route("GET", "/healthz", None, {200: Returns("It is alive.", {JSON: Health})}, refusals=(InternalError,))
async def healthz(request: Request) -> AsgiResponse:
    """Report that the process is alive."""
    content: Health = {"status": "alive"}
    return json_answer(request, content)


@ROUTES.route(
    "GET",
    "/readyz",
    None,
    {
        200: Returns("Send clients here.", {JSON: Readiness}),
        503: Returns("Send them elsewhere.", {JSON: Readiness}),
    },
    refusals=(InternalError, Unavailable),
)
async def readyz(request: Request) -> AsgiResponse:
    """Report whether new clients should be sent to this pod, and the state of the listener."""
    pod = pod_of(request)
    state: Readiness = {
        "status": "ready" if pod.ready else "not ready",
        "draining": pod.draining,
        "full": pod.full,
        "disk_full": pod.shards.disk_full,
        "listener": pod.shards.listener_state.value,
    }
    if len(pod.shards) > 1:
        state["databases"] = {shard.database.name: "ready" if shard.ready else "not ready" for shard in pod.shards}
    if pod.companion is not None:
        state["worker"] = "ready" if pod.companion.ready else "not ready"
    return json_answer(request, state, status=200 if pod.ready else 503)


@ROUTES.route(
    "GET",
    "/metrics",
    "admin",
    {200: Returns("The metrics.", {TEXT: "Prometheus' text format."})},
    refusals=GUARDED,
    counted=False,
)
async def metrics(request: Request) -> AsgiResponse:
    """Return the metrics in Prometheus' text format."""
    pod = pod_of(request)
    return Response(await pod.render_metrics(), media_type="text/plain; version=0.0.4", headers=common_headers(request))
