"""Which failures of creates a fault excuses: only those of a pod that could not reach any database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import httpx2
import pytest

from baton.chaos.complaint import Complaint
from baton.chaos.reach import MOMENT_SECONDS, Reach
from baton.chaos.unkeyed import UnkeyedCreates
from baton.demo.cluster import Program

from .test_trouble import Clock

STREAM = "019c2f5e-0000-7000-8000-000000000000"


def reach_of(clock: Clock) -> Reach:
    return Reach(["pod-1", "pod-2"], [0, 1], clock)


def test_a_fault_takes_one_database_from_one_pod() -> None:
    clock = Clock()
    reach = reach_of(clock)
    with reach.cut(["pod-1", "worker-1"], [1]):
        assert reach.reached("pod-1", clock.seconds) == [0]
        assert reach.reached("pod-2", clock.seconds) == [0, 1]


def test_a_database_counts_a_moment_after_the_fault() -> None:
    clock = Clock()
    reach = reach_of(clock)
    with reach.cut(["pod-1"], [1]):
        pass
    ended_at = clock.seconds
    clock.seconds += 100
    assert reach.reached("pod-1", ended_at + MOMENT_SECONDS) == [0]
    assert reach.reached("pod-1", ended_at + MOMENT_SECONDS + 0.1) == [0, 1]


def test_a_fault_that_began_and_ended_during_a_create_counts() -> None:
    clock = Clock()
    reach = reach_of(clock)
    asked_at = clock.seconds
    clock.seconds += 1
    with reach.cut(["pod-1"], [0, 1]):
        clock.seconds += 1
    assert reach.reached("pod-1", asked_at) == []


def test_a_fault_counts_until_all_that_overlap_have_ended() -> None:
    clock = Clock()
    reach = reach_of(clock)
    with reach.cut(["pod-1"], [0]):
        with reach.cut(["pod-1"], [0, 1]):
            pass
        clock.seconds += 2 * MOMENT_SECONDS
        assert reach.reached("pod-1", clock.seconds) == [1]


def test_a_pod_that_is_away_reaches_nothing() -> None:
    clock = Clock()
    reach = reach_of(clock)
    reach.note_away("pod-1")
    assert reach.reached("pod-1", clock.seconds) == []
    assert reach.reached("pod-2", clock.seconds) == [0, 1]


class Pod:
    """Answers creates: with 503 so many times, then with a stream."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        refused, self.failures = self.failures > 0, self.failures - 1
        status = "503 Service Unavailable" if refused else "201 Created"
        body = json.dumps({"id": STREAM})
        writer.write(f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()


@asynccontextmanager
async def creates(reach: Reach, pod: Pod) -> AsyncIterator[tuple[UnkeyedCreates, list[Complaint]]]:
    complaints: list[Complaint] = []
    server = await asyncio.start_server(pod.serve, "127.0.0.1", 0)
    async with server, httpx2.AsyncClient(trust_env=False) as http:
        program = Program("pod-1", server.sockets[0].getsockname()[1])
        yield UnkeyedCreates(http, [program], reach, lambda found, _stream, _pod: complaints.append(found)), complaints


@pytest.mark.parametrize(("away", "kinds"), [([0], ["create failed"] * 2), ([0, 1], [])], ids=["one", "all"])
async def test_a_failed_create_is_excused_only_if_no_database_is_left(away: list[int], kinds: list[str]) -> None:
    reach = Reach(["pod-1"], [0, 1])
    async with creates(reach, Pod(failures=2)) as (unkeyed, complaints):
        with reach.cut(["pod-1"], away):
            assert await unkeyed.create(b"{}", Random(1), over=lambda: False) == STREAM
    assert [found.kind for found in complaints] == kinds
    assert (unkeyed.created, unkeyed.failed) == (1, 2 - len(kinds))


async def test_a_create_ends_when_time_is_up() -> None:
    reach = Reach(["pod-1"], [0])
    async with creates(reach, Pod(failures=100)) as (unkeyed, complaints):
        with reach.cut(["pod-1"], [0]):
            assert await unkeyed.create(b"{}", Random(1), over=lambda: unkeyed.failed == 2) is None
    assert complaints == []
