"""The watchdog: what it logs and counts when a generator blocks the event loop, and whose silence that is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, cast
from uuid import UUID

import pytest
from tests.support.runs import run_of

from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded
from baton.observability.metrics import WorkerMetrics
from baton.worker.run import Run
from baton.worker.side_thread import Owner
from baton.worker.watchdog import TICK_SECONDS, Watchdog


async def idle(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    await asyncio.Event().wait()
    yield ""


class Blocked:
    """A loop that answers when the test says so. Time passes only in `pass_seconds`."""

    def __init__(self, runs: dict[UUID, Run], running: asyncio.Task[Any] | None, hang_seconds: float) -> None:
        self.now = 100.0
        self.calls: list[Callable[[], object]] = []
        self.metrics = WorkerMetrics()
        self.watchdog = Watchdog(
            lambda: list(runs.values()), self.metrics, hang_seconds=hang_seconds, clock=lambda: self.now
        )
        self._running = running

    def call(self, callback: Callable[..., object], *arguments: object) -> None:
        self.calls.append(lambda: callback(*arguments))

    def task(self) -> asyncio.Task[Any] | None:
        return self._running

    def stack(self) -> str:
        return "the stack"

    def pass_seconds(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK_SECONDS)):
            self.now += TICK_SECONDS
            self.watchdog.tick(cast(Owner, self), self.now, TICK_SECONDS)

    def answer(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()

    def counted(self, generator: str) -> float | None:
        return self.metrics.registry.get_sample_value("baton_loop_blocked_seconds_total", {"generator": generator})


async def test_a_block_is_logged_once_with_its_generator_and_once_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    run = run_of(idle, "slow")
    run._generating = task = asyncio.current_task()
    loop = Blocked({run.claim.stream_id: run}, task, hang_seconds=60)
    loop.pass_seconds(TICK_SECONDS)
    loop.answer()
    loop.pass_seconds(1)
    assert not caplog.records
    loop.pass_seconds(5)
    loop.answer()
    loop.pass_seconds(TICK_SECONDS)
    begun, ended = (record.getMessage() for record in caplog.records)
    assert f"by the generator 'slow' of stream {run.claim.stream_id}" in begun
    assert "the stack" in begun
    assert "It was blocked for 5.8 s by the generator 'slow'" in ended
    assert loop.counted("slow") == pytest.approx(5.75)
    assert not loop.watchdog.hangs


async def test_a_task_of_no_stream_is_nobodys_block(caplog: pytest.LogCaptureFixture) -> None:
    run = run_of(idle, "slow")
    loop = Blocked({run.claim.stream_id: run}, asyncio.current_task(), hang_seconds=60)
    loop.pass_seconds(2)
    assert "by something other than a generator" in caplog.text
    assert loop.counted("") == pytest.approx(1.75)


async def test_a_worker_hangs_until_its_loop_answers(caplog: pytest.LogCaptureFixture) -> None:
    loop = Blocked({}, None, hang_seconds=3)
    loop.pass_seconds(3)
    assert not loop.watchdog.hangs
    loop.pass_seconds(1)
    assert loop.watchdog.hangs
    assert caplog.text.count("gives up its streams") == 1
    loop.answer()
    loop.pass_seconds(TICK_SECONDS)
    assert not loop.watchdog.hangs


async def test_time_in_which_the_whole_process_stood_still_is_no_block(caplog: pytest.LogCaptureFixture) -> None:
    watchdog = Watchdog(list, WorkerMetrics(), hang_seconds=1)
    owner = cast(Owner, Blocked({}, None, 1))
    watchdog.tick(owner, 1.0, TICK_SECONDS)
    watchdog.tick(owner, 1000.0, 2 * TICK_SECONDS)
    assert not watchdog.hangs
    assert not caplog.records


@pytest.mark.parametrize(("own", "said"), [(True, "Nothing came for 5 seconds: its generator was stuck."), (False, "")])
async def test_a_block_is_the_silence_of_the_generator_that_blocks(own: bool, said: str) -> None:
    run = run_of(idle, "slow")
    run.last_event_at = time.monotonic() - 9
    run.note_block(8, own=own)
    run.enforce(max_duration=100, idle_timeout=5)
    assert (run._stop is not None) is own
    if run._stop is not None:
        assert (run._stop.code, (run._stop.error_message or "").startswith(said)) == ("idle_timeout", True)


async def test_an_earlier_block_is_no_reason_for_a_later_silence() -> None:
    run = run_of(idle, "slow")
    run.last_event_at = time.monotonic() - 9
    run.note_block(8, own=True)
    run.last_event_at = time.monotonic()
    run.enforce(max_duration=100, idle_timeout=-1)
    assert run._stop is not None
    assert "stuck" not in (run._stop.error_message or "")


async def test_an_end_says_that_the_generator_was_stuck_only_if_that_was_the_reason() -> None:
    for seconds, stuck in ((8, True), (2, False)):
        run = run_of(idle, "slow")
        run.started_at = time.monotonic() - 14
        run.note_block(seconds, own=True)
        run.enforce(max_duration=10, idle_timeout=1000)
        assert run._stop is not None
        assert ("its generator was stuck" in (run._stop.error_message or "")) is stuck
