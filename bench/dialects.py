"""Measures the CPU cost of each dialect, compared with the native one: `python -m bench.dialects`.

One pod and one worker run as processes of their own on an embedded Postgres. In each phase streams are created and
followed in one request each, in one dialect, by viewers that only count bytes. The figures are the CPU time that the
pod, and all of pod, worker and Postgres, spent from the first request to the last end, divided by the events of all
streams. The phases of all dialects run in turn, several times. The report has the medians and the ranges.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import orjson
import psutil
import uvloop

from baton.demo.embedded import embedded_postgres
from baton.schema.migrate import migrate

from .cluster import cluster
from .postgres import postmaster
from .processes import cpu_seconds

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Way:
    """How to create and follow a stream in a dialect. The last bytes of a complete answer contain `end`."""

    path: str
    body: Callable[[Body], Body]
    end: bytes
    accept: str = "*/*"


MESSAGES: Final = [{"role": "user", "content": "go"}]
UI_MESSAGES: Final = [{"id": "m", "role": "user", "parts": [{"type": "text", "text": "go"}]}]
AG_UI_MESSAGES: Final = [{"id": "m", "role": "user", "content": "go"}]
WAYS: Final[Mapping[str, Way]] = {
    "native": Way("/v1/streams", lambda load: {"generator": "load", "input": load}, b'"done"', "text/event-stream"),
    "openai.responses": Way(
        "/v1/responses", lambda load: {"model": "load", "input": "go", "stream": True, **load}, b"response.completed"
    ),
    "openai.chat": Way(
        "/v1/chat/completions", lambda load: {"model": "load", "messages": MESSAGES, "stream": True, **load}, b"[DONE]"
    ),
    "anthropic.messages": Way(
        "/v1/messages", lambda load: {"model": "load", "messages": MESSAGES, "stream": True, **load}, b"message_stop"
    ),
    "aisdk": Way(
        "/v1/ai-sdk/chat", lambda load: {"id": "c", "messages": UI_MESSAGES, "model": "load", **load}, b"[DONE]"
    ),
    "aisdk.v4": Way("/v1/ai-sdk/v4/chat", lambda load: {"messages": MESSAGES, "model": "load", **load}, b"\nd:"),
    "agui": Way(
        "/v1/ag-ui/load",
        lambda load: {"threadId": "t", "runId": uuid.uuid4().hex, "messages": AG_UI_MESSAGES, **load},
        b"RUN_FINISHED",
    ),
    "langgraph": Way(
        "/v1/langgraph/runs/stream",
        lambda load: {
            "assistant_id": "load",
            "input": {"messages": MESSAGES, **load},
            "stream_mode": ["messages-tuple", "values"],
        },
        b"event: end",
    ),
    "text": Way("/v1/streams", lambda load: {"generator": "load", "input": load}, b"", "text/plain"),
}


class Viewer(asyncio.Protocol):
    """Sends one request, and counts the bytes of the response."""

    def __init__(self, request: bytes) -> None:
        self.bytes = 0
        self.last = b""
        self.over = asyncio.get_running_loop().create_future()
        self._request = request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        cast(asyncio.Transport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        """Count."""
        self.bytes += len(data)
        self.last = (self.last + data)[-16_384:]

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        if not self.over.done():
            self.over.set_result(None)


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one phase: CPU seconds of the pod and of all processes, and received bytes, for this many events."""

    pod: float
    all: float
    bytes: int
    events: int


def request_of(way: Way, load: Body) -> bytes:
    """Return the request that creates and follows a stream, on a connection that ends with it."""
    body = orjson.dumps(way.body(load))
    return (
        f"POST {way.path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\naccept: {way.accept}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


async def phase(way: Way, port: int, processes: list[psutil.Process], given: argparse.Namespace) -> Cost:
    """Follow streams in one dialect to their end."""
    loop = asyncio.get_running_loop()
    tokens = int(given.rate * given.seconds)
    load = {"rate": given.rate, "tokens": tokens}
    before = [cpu_seconds(process) for process in processes]
    viewers = [Viewer(request_of(way, load)) for _ in range(given.streams)]
    for viewer in viewers:
        await loop.create_connection(lambda viewer=viewer: viewer, "127.0.0.1", port)  # type: ignore[misc]
    async with asyncio.timeout(given.seconds + 60):
        await asyncio.gather(*(viewer.over for viewer in viewers))
    spent = [cpu_seconds(process) - start for process, start in zip(processes, before, strict=True)]
    for viewer in viewers:
        assert way.end in viewer.last, viewer.last[-300:]
        # The chunk that ends a whole response: a cut one has none.
        assert viewer.last.endswith(b"0\r\n\r\n"), viewer.last[-300:]
    return Cost(spent[0], sum(spent), sum(viewer.bytes for viewer in viewers), given.streams * (tokens + 1))


async def run(dsn: str, folder: Path, given: argparse.Namespace) -> dict[str, list[Cost]]:
    """Run all phases."""
    await migrate(dsn, days_ahead=7)
    costs: dict[str, list[Cost]] = defaultdict(list)
    async with cluster(dsn, folder, given.streams) as (running, port):
        pod, worker = running.children["pod"], running.children["worker"]
        processes = [psutil.Process(pod.pid), psutil.Process(worker.pid), await postmaster(dsn)]
        await phase(WAYS["native"], port, processes, argparse.Namespace(**vars(given) | {"seconds": 2}))
        for turn in range(given.turns):
            for name, way in WAYS.items():
                costs[name].append(await phase(way, port, processes, given))
                print(f"turn {turn + 1} of {given.turns}: {name}", file=sys.stderr, flush=True)
    return costs


def report(costs: Mapping[str, list[Cost]]) -> None:
    """Print the figures."""
    pod = {name: [cost.pod / cost.events * 1e6 for cost in found] for name, found in costs.items()}
    whole = {name: [cost.all / cost.events * 1e6 for cost in found] for name, found in costs.items()}
    print("| dialect | bytes/event | pod | of native | pod, worker, Postgres | of native |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, found in costs.items():
        size = found[0].bytes / found[0].events
        cells = [_cells(values, name) for values in (pod, whole)]
        print(f"| {name} | {size:.0f} | {' | '.join(cells)} |")


def _cells(values: Mapping[str, list[float]], name: str) -> str:
    median = statistics.median(values[name])
    ratio = median / statistics.median(values["native"])
    return f"{median:.1f} µs ({min(values[name]):.1f} to {max(values[name]):.1f}) | {ratio:.2f}"


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200, help="each with one viewer")
    parser.add_argument("--rate", type=float, default=50, help="tokens a second of each stream")
    parser.add_argument("--seconds", type=float, default=8, help="how long each phase takes")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    print(__doc__)
    print(f"{given.streams} streams at {given.rate:g} tokens/s, {given.turns} turns.\n", flush=True)
    with embedded_postgres() as dsn, tempfile.TemporaryDirectory() as folder:
        report(uvloop.run(run(dsn, Path(folder), given)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
