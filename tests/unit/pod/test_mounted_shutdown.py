"""Signals, in a process where a mounted pod handles them before the server does."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Callable
from types import FrameType

import pytest
import uvloop
from tests.support.logbook import DEADLINE_SECONDS, until

from baton.pod.mounted_shutdown import MountedShutdown


class Drain:
    """Clients that leave when the test lets them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.let = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await self.let.wait()


class Handler:
    """A server's signal handler, which keeps what it gets."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.heard.append(number)


pytestmark = pytest.mark.usefixtures("signal_handlers")


@contextlib.asynccontextmanager
async def departure(drain: Drain, seconds: float = 3) -> AsyncIterator[MountedShutdown]:
    made = MountedShutdown(drain, seconds, on_signals=True)
    try:
        yield made
    finally:
        drain.let.set()
        await made.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_server_gets_the_signal_once_the_clients_are_sent_away(number: signal.Signals) -> None:
    server, drain = Handler(), Drain()
    signal.signal(number, server)
    async with departure(drain) as leaving:
        leaving.install()
        signal.raise_signal(number)
        await until(lambda: drain.seconds == [3])
        assert server.heard == []
        drain.let.set()
        await until(lambda: server.heard == [number])
    assert signal.getsignal(number) is server


async def test_after_a_second_signal_the_rest_leave_at_once() -> None:
    server, drain = Handler(), Drain()
    signal.signal(signal.SIGINT, server)
    async with departure(drain) as leaving:
        leaving.install()
        signal.raise_signal(signal.SIGINT)
        await until(lambda: bool(drain.seconds))
        signal.raise_signal(signal.SIGINT)
        # Both, as a server counts them.
        await until(lambda: server.heard == [signal.SIGINT] * 2)
        await until(lambda: drain.seconds == [3, 0])
        signal.raise_signal(signal.SIGINT)
        await until(lambda: server.heard == [signal.SIGINT] * 3)
    assert server.heard == [signal.SIGINT] * 3
    assert drain.seconds == [3, 0]


async def test_a_signal_after_a_drain_does_not_drain_again() -> None:
    server, drain = Handler(), Drain()
    signal.signal(signal.SIGTERM, server)
    async with departure(drain) as leaving:
        leaving.install()
        asked = asyncio.create_task(leaving.drain())
        await until(lambda: bool(drain.seconds))
        signal.raise_signal(signal.SIGTERM)
        # The second signal arrived before the drain has ended.
        await asyncio.sleep(0)
        drain.let.set()
        await asked
        await until(lambda: server.heard == [signal.SIGTERM])
    assert len(drain.seconds) == 1


async def test_a_signal_that_no_server_handles_keeps_its_handler() -> None:
    """In tests and scripts, where no server runs: SIGTERM ends a process, and Ctrl-C interrupts it."""
    drain = Drain()
    for number, handler in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        signal.signal(number, handler)
    async with departure(drain) as leaving:
        leaving.install()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        leaving.install()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_a_ctrl_c_that_asyncio_handles_keeps_its_handler() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)

    async def main() -> None:
        asyncios = signal.getsignal(signal.SIGINT)
        assert asyncios is not signal.default_int_handler
        async with departure(Drain()) as leaving:
            leaving.install()
            assert signal.getsignal(signal.SIGINT) is asyncios

    asyncio.run(main())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_an_event_loop_that_handles_signals_keeps_handling_them(run: Callable[..., None]) -> None:
    async def main() -> None:
        heard, drain = asyncio.Event(), Drain()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, heard.set)
        async with departure(drain) as leaving:
            leaving.install()
            signal.raise_signal(signal.SIGTERM)
            await asyncio.wait_for(heard.wait(), DEADLINE_SECONDS)
            # Its server stops at the same time, so the drain has less time.
            await until(lambda: drain.seconds == [1.5])
            heard.clear()
            drain.let.set()
            await leaving.drain()
            await asyncio.sleep(0)
            assert not heard.is_set()
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(heard.wait(), DEADLINE_SECONDS)

    run(main())


async def test_a_handler_that_was_installed_later_is_kept() -> None:
    server, other, drain = Handler(), Handler(), Drain()
    signal.signal(signal.SIGTERM, server)
    async with departure(drain) as leaving:
        leaving.install()
        signal.signal(signal.SIGTERM, other)
        leaving.install()
        assert signal.getsignal(signal.SIGTERM) is other
    assert signal.getsignal(signal.SIGTERM) is other


async def test_two_pods_in_one_process_both_send_their_clients_away() -> None:
    server, one, other = Handler(), Drain(), Drain()
    signal.signal(signal.SIGTERM, server)
    async with departure(one) as inner, departure(other) as outer:
        inner.install()
        outer.install()
        signal.raise_signal(signal.SIGTERM)
        await until(lambda: bool(other.seconds))
        other.let.set()
        await until(lambda: bool(one.seconds))
        assert server.heard == []
        one.let.set()
        await until(lambda: server.heard == [signal.SIGTERM])
    assert signal.getsignal(signal.SIGTERM) is server


def test_in_another_thread_signals_stay_and_leave_still_drains() -> None:
    server = Handler()
    signal.signal(signal.SIGTERM, server)
    found: list[MountedShutdown] = []
    drained = threading.Event()

    async def serve() -> None:
        drain = Drain()
        async with departure(drain) as leaving:
            leaving.install()
            found.append(leaving)
            await until(lambda: drain.seconds == [3])
            drained.set()

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    while not found:
        thread.join(0.01)
    found[0].leave()
    thread.join(DEADLINE_SECONDS)
    assert drained.is_set()
    assert signal.getsignal(signal.SIGTERM) is server
    found[0].leave()  # the loop is closed by now
