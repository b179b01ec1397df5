"""The load client's counts, against a server that does wrong what it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
from bench.missing import Missing
from bench.native import compiled
from bench.viewers import Report, Target, Viewers
from tests.support.logbook import until

Answer = Callable[[asyncio.StreamWriter, str], Awaitable[None]]

HEADER = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"


@pytest.fixture(scope="module", autouse=True)
def _client() -> None:
    try:
        compiled("viewers")
    except Missing as reason:
        pytest.skip(str(reason))


def event(number: int, *, ago_seconds: float = 0) -> bytes:
    made = int((time.time() - ago_seconds) * 1e6)
    return b'id: %d\ndata: {"type":"text","delta":"@%d,%d@ word"}\n\n' % (number, number, made)


@contextlib.asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = (await reader.readuntil(b"\r\n\r\n")).decode()
        with contextlib.suppress(ConnectionError):
            await answer(writer, asked)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def plain(events: Sequence[bytes]) -> Answer:
    async def answer(writer: asyncio.StreamWriter, _asked: str) -> None:
        writer.write(HEADER + b"\r\n" + b"".join(events))
        await writer.drain()

    return answer


async def gathered(viewers: Viewers, enough: Callable[[list[Report]], bool]) -> list[Report]:
    """Reports until there are enough."""
    reports: list[Report] = []

    async def next_is_enough() -> bool:
        reports.append(await viewers.report())
        return enough(reports)

    await until(next_is_enough)
    return reports


def total(reports: list[Report], name: str) -> int:
    return sum(getattr(report, name) for report in reports)


async def watched(answer: Answer, last: int, *flags: str, ends: str = "whole") -> tuple[list[Report], list[str]]:
    over: list[str] = []
    async with serving(answer) as port, Viewers.open(*flags, over=over.append) as viewers:
        viewers.watch(Target(port, "/events", last))
        return await gathered(viewers, lambda reports: total(reports, ends) == 1), over


@pytest.mark.parametrize(
    ("numbers", "gaps", "repeats"),
    [([1, 2, 3, 4], 0, 0), ([1, 4], 2, 0), ([2, 3, 4], 1, 0), ([1, 2, 2, 3, 4], 0, 1), ([1, 2, 3, 1, 2, 3, 4], 0, 3)],
)
async def test_gaps_and_repeats_are_found(numbers: list[int], gaps: int, repeats: int) -> None:
    reports, over = await watched(plain([event(number) for number in numbers]), 4)
    assert total(reports, "events") == len(numbers)
    assert (total(reports, "gaps"), total(reports, "repeats")) == (gaps, repeats)
    assert total(reports, "lost") == 0
    assert over == ["/events"]


async def test_a_stream_that_ends_early_is_lost() -> None:
    reports, over = await watched(plain([event(1), event(2)]), 3, ends="lost")
    assert (total(reports, "whole"), over) == (0, [])


async def test_chunks_and_markers_can_be_split_anywhere() -> None:
    body = b"".join(event(number) for number in range(1, 6))

    async def answer(writer: asyncio.StreamWriter, _asked: str) -> None:
        writer.write(HEADER + b"Transfer-Encoding: chunked\r\n\r\n")
        pieces = re.findall(rb"(?s).{1,7}", body)
        for byte in b"".join(b"%x;a=1\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n":
            writer.write(bytes([byte]))
            await writer.drain()

    reports, _ = await watched(answer, 5)
    assert total(reports, "events") == 5
    assert total(reports, "gaps") == total(reports, "repeats") == 0


@pytest.mark.parametrize("milliseconds", [3, 250, 40_000])
async def test_delays_are_measured_by_the_marker(milliseconds: int) -> None:
    reports, _ = await watched(plain([event(1, ago_seconds=milliseconds / 1e3)]), 1)
    found = next(report for report in reports if report.events)
    assert found.p50_ms <= found.max_ms
    assert found.p50_ms == pytest.approx(found.max_ms, rel=0.02)
    assert found.max_ms >= milliseconds


async def test_a_viewer_reconnects_after_its_last_complete_event() -> None:
    asked_for: list[str] = []

    async def answer(writer: asyncio.StreamWriter, asked: str) -> None:
        found = re.search(r"Last-Event-ID: (\d+)", asked)
        asked_for.append(found[1] if found else "")
        first = int(found[1]) + 1 if found else 1
        # The second time the marker of what is cut off is there already.
        cut = b"" if first > 5 else event(first + 2)[: -2 if first > 1 else 12]
        last = 8 if first > 5 else first + 1
        writer.write(HEADER + b"\r\n" + b"".join(map(event, range(first, last + 1))) + cut)
        await writer.drain()

    reports, _ = await watched(answer, 8, "--again")
    assert asked_for == ["", "2", "4", "6"]
    assert total(reports, "events") == 8
    assert total(reports, "gaps") == total(reports, "repeats") == 0
    assert total(reports, "resumed") == 3


async def test_a_viewer_with_the_last_token_leaves_if_configured() -> None:
    left = asyncio.Event()

    async def answer(writer: asyncio.StreamWriter, _asked: str) -> None:
        writer.write(HEADER + b"\r\n" + event(1))
        while not writer.transport.is_closing():
            writer.write(b": still there\n\n")
            await asyncio.sleep(0.01)
        left.set()

    await watched(answer, 1, "--leave")
    await asyncio.wait_for(left.wait(), 20)


async def test_a_refusal_counts_as_failed() -> None:
    async def answer(writer: asyncio.StreamWriter, _asked: str) -> None:
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    await watched(answer, 1, ends="failed")
