"""Routes for the platform: is the process alive, is it able to serve, what does it count."""

from __future__ import annotations

from typing import Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from .request import AsgiResponse, answered, common_headers, json_answer, pod_of


class Health(TypedDict):
    """A process that is alive."""

    status: Literal["alive"]


class Readiness(TypedDict):
    """Whether clients should be sent to this pod. `disk_full` is the database's: all pods can serve what there is."""

    status: Literal["ready", "not ready"]
    draining: bool
    full: bool
    disk_full: bool
    listener: str


async def healthz(request: Request) -> AsgiResponse:
    """Tell that the process is alive."""
    content: Health = {"status": "alive"}
    return json_answer(request, content)


async def readyz(request: Request) -> AsgiResponse:
    """Tell whether new clients should be sent to this pod, and what the listener is doing."""
    pod = pod_of(request)
    state: Readiness = {
        "status": "ready" if pod.ready else "not ready",
        "draining": pod.draining,
        "full": pod.full,
        "disk_full": pod.disk_full,
        "listener": pod.listener.state.value,
    }
    return json_answer(request, state, status=200 if pod.ready else 503)


async def metrics(request: Request) -> AsgiResponse:
    """Give the metrics in Prometheus' text format."""
    pod = pod_of(request)
    return Response(pod.metrics.render(), media_type="text/plain; version=0.0.4", headers=common_headers(request))


ROUTES = [
    Route("/healthz", answered(healthz, None), methods=["GET"]),
    Route("/readyz", answered(readyz, None), methods=["GET"]),
    Route("/metrics", answered(metrics, "admin", counted=False), methods=["GET"]),
]
