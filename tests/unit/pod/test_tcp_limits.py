"""How long a connection may take over each phase of a request, and which connection gives way to others."""

from __future__ import annotations

import contextlib
import socket

from tests.support.cluster import RunningPod

from baton.observability.metrics import PodMetrics
from baton.pod.tcp_limits import PATIENCE_SECONDS, Phase, TcpLimits
from baton.server.listening_socket import bind


class Visitor:
    """A connection without a socket."""

    def __init__(self) -> None:
        self.phase: Phase | None = None
        self.expired: list[Phase] = []
        self.gave_way = False

    def expire(self, phase: Phase) -> None:
        self.expired.append(phase)

    def give_way(self) -> None:
        self.gave_way = True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def intake_with(clock: Clock, most: int = 100) -> tuple[TcpLimits, PodMetrics]:
    metrics = PodMetrics()
    seconds = {
        "header_timeout_seconds": 10,
        "body_timeout_seconds": 30,
        "http_keep_alive_seconds": 5,
        "flush_seconds": 7,
    }
    return TcpLimits(metrics, max_connections=most, clock=clock, **seconds), metrics


def test_each_phase_has_a_time_limit_and_answering_has_none() -> None:
    clock = Clock()
    intake, _ = intake_with(clock)
    phases: list[Phase | None] = ["header", "body", "idle", "flush", None]
    visitors = [Visitor() for _ in phases]
    for visitor, phase in zip(visitors, phases, strict=True):
        intake.enter(visitor)
        intake.move(visitor, phase)
    ended = []
    for second in range(1, 40):
        clock.now = 100.0 + second
        intake.sweep()
        ended += [(second, visitor.expired.pop()) for visitor in visitors if visitor.expired]
    assert ended == [(5, "idle"), (7, "flush"), (10, "header"), (30, "body")]


def test_a_move_restarts_the_time_and_leaving_ends_it() -> None:
    clock = Clock()
    intake, _ = intake_with(clock)
    moved, left = Visitor(), Visitor()
    intake.enter(moved)
    intake.enter(left)
    clock.now += 9
    intake.move(moved, "body")
    intake.leave(left)
    clock.now += 20
    intake.sweep()
    assert (moved.expired, left.expired, intake.connections) == ([], [], 1)


def test_many_late_connections_are_ended_in_order_a_few_at_once() -> None:
    clock = Clock()
    intake, _ = intake_with(clock)
    visitors = [Visitor() for _ in range(25)]
    for visitor in visitors:
        intake.enter(visitor)
    clock.now += 10
    ended = []
    for _ in range(3):
        intake.sweep()
        ended.append([bool(visitor.expired) for visitor in visitors].count(True))
    assert ended == [10, 20, 25]


def test_beyond_the_limit_the_longest_waiting_connection_is_closed() -> None:
    clock = Clock()
    intake, metrics = intake_with(clock, most=4)
    asking, idle, answered, answered_too = (Visitor() for _ in range(4))
    for visitor, phase in ((asking, "header"), (idle, "idle"), (answered, None), (answered_too, None)):
        assert intake.enter(visitor)
        intake.move(visitor, phase)  # type: ignore[arg-type]
        clock.now += 0.1
    assert not intake.enter(Visitor())  # nobody has had the time to ask
    clock.now += PATIENCE_SECONDS
    new = [Visitor() for _ in range(3)]
    assert [intake.enter(visitor) for visitor in new] == [True, True, True]
    assert asking.gave_way
    assert (answered.gave_way, answered_too.gave_way) == (False, False)
    assert metrics.rejected["connections"] == 4


def test_connections_without_a_request_do_not_fill_a_pod() -> None:
    clock = Clock()
    intake, _ = intake_with(clock, most=20)
    visitors = [Visitor() for _ in range(20)]
    for visitor in visitors:
        intake.enter(visitor)
    assert not intake.full
    for visitor in visitors:
        intake.move(visitor, None)
    assert intake.full
    intake.leave(visitors[0])
    assert not intake.full


def rejected(pod: RunningPod, limit: str) -> float:
    return pod.pod.metrics.registry.get_sample_value("baton_rejections_total", {"limit": limit}) or 0


async def test_the_kernel_closes_connections_of_clients_that_vanished() -> None:
    with contextlib.closing(bind("127.0.0.1", 0, 30)) as listening:
        listening.listen()
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
