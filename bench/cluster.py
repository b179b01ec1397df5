"""Runs pods and workers of this checkout as processes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import httpx2

from baton.demo.cluster import Cluster, Program, reserved_port

ROOT: Final = Path(__file__).parent.parent


@contextlib.asynccontextmanager
async def cluster(
    dsn: str,
    folder: Path,
    count: int,
    further: Mapping[str, str] | None = None,
    *,
    pods: int = 1,
    workers: Sequence[Mapping[str, str]] = ({},),
) -> AsyncIterator[tuple[Cluster, int]]:
    """Start pods and workers for `count` streams each, with `further` settings; yield them and the first pod's port.

    `dsn` is their database, unless `further` has several. `workers` has what each worker alone is set to.
    """
    one = {} if further is not None and "BATON_DATABASES" in further else {"BATON_DATABASE_URL": dsn}
    settings = {
        **one,
        "BATON_ALLOW_ANONYMOUS": "true",
        "BATON_GENERATORS": "load=bench.load:generate,saving=bench.load:generate_and_save",
        "BATON_WORKER_CONCURRENCY": str(count),
        "PYTHONPATH": str(ROOT),
        **(further or {}),
    }
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(reserved_port()) for _ in range(pods)]
        programs = [Program(_name("pod", number), port) for number, port in enumerate(ports, 1)]
        programs += [Program(_name("worker", number), settings=own) for number, own in enumerate(workers, 1)]
        async with Cluster.open(folder, programs, settings) as running, httpx2.AsyncClient() as http:
            await running.wait_until_ready(http)
            yield running, ports[0]


def _name(kind: str, number: int) -> str:
    return kind if number == 1 else f"{kind}-{number}"
