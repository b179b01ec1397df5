"""The outbox: batches keep their boundaries, numbers follow the tail, and nothing follows the end."""

from __future__ import annotations

import asyncio
import uuid

import orjson
import pytest

from baton.db.event_log import Append
from baton.events import encode_text
from baton.outcome import Outcome
from baton.worker.outbox import Lost, Outbox


class Probe:
    """An outbox, and the calls that it made to its writer and its run."""

    def __init__(
        self,
        *,
        tail: int = 0,
        max_events: int = 3,
        max_bytes: int = 1 << 20,
        may_reset: bool = True,
        interruption: str | None = None,
    ) -> None:
        self.ready: list[bool] = []
        self.lost: list[Lost] = []
        self.outbox = Outbox(
            uuid.uuid4(),
            7,
            tail,
            on_ready=lambda outbox: self.ready.append(outbox.urgent),
            on_lost=self.lost.append,
            max_events=max_events,
            max_bytes=max_bytes,
            may_reset=may_reset,
            interruption=interruption,
        )

    def put(self, *words: str) -> None:
        for word in words:
            self.outbox.put(encode_text(word))

    def take(self) -> Append:
        item = self.outbox.take()
        assert item is not None
        return item


def deltas_of(item: Append) -> list[str]:
    events = map(orjson.loads, item.events.split(b"\n"))
    return [event.get("delta") or event["type"] for event in events]


def test_a_batch_is_numbered_after_the_tail() -> None:
    probe = Probe(tail=4)
    probe.put("a", "b")
    item = probe.take()
    assert (item.first_seq, item.last_seq, item.epoch, deltas_of(item)) == (5, 6, 7, ["a", "b"])
    probe.outbox.written(6, terminal=False)
    probe.put("c")
    assert probe.take().first_seq == 7


def test_a_batch_in_flight_keeps_its_boundaries() -> None:
    probe = Probe()
    probe.put("a")
    first = probe.take()
    probe.put("b")
    probe.outbox.finish(Outcome.completed("stop"))
    assert probe.take() == first
    assert probe.outbox.still_has(first)
    probe.outbox.written(1, terminal=False)
    assert not probe.outbox.still_has(first)
    second = probe.take()
    assert deltas_of(second) == ["b", "done"]
    assert second.outcome == Outcome.completed("stop")
    probe.outbox.written(3, terminal=True)
    assert probe.outbox.closed.is_set()
    assert probe.outbox.take() is None


def test_the_first_event_and_the_terminal_one_are_urgent() -> None:
    probe = Probe()
    probe.put("a", "b")
    probe.take()
    probe.outbox.written(2, terminal=False)
    probe.put("c")
    probe.outbox.finish(Outcome.completed("stop"))
    assert probe.ready == [True, False, True]


def test_lines_put_during_a_retry_make_the_outbox_ready_again() -> None:
    probe = Probe()
    probe.put("a")
    probe.take()
    probe.put("b")
    probe.outbox.retry()
    probe.take()
    probe.ready.clear()
    probe.outbox.written(1, terminal=False)
    assert probe.ready
    assert deltas_of(probe.take()) == ["b"]


def test_nothing_follows_the_terminal_event() -> None:
    probe = Probe()
    probe.outbox.finish(Outcome.cancelled())
    probe.put("late")
    assert deltas_of(probe.take()) == ["done"]


def test_a_former_workers_late_batch_is_reset_if_the_log_seemed_empty() -> None:
    probe = Probe()
    probe.put("a")
    probe.take()
    probe.outbox.retry_after(3, {})
    item = probe.take()
    assert (item.first_seq, item.last_seq, deltas_of(item)) == (4, 5, ["reset", "a"])
    probe.outbox.retry_after(5, {})
    assert deltas_of(probe.take()) == ["reset", "a"]


def test_a_reset_is_not_repeated_when_the_place_was_taken() -> None:
    probe = Probe(tail=2)
    probe.outbox.reset()
    probe.put("a")
    probe.take()
    probe.outbox.retry_after(3, {})
    assert deltas_of(probe.take()) == ["reset", "a"]


def test_a_stream_that_cannot_be_reset_ends_with_what_it_has() -> None:
    probe = Probe(may_reset=False)
    probe.put("a")
    probe.take()
    probe.outbox.retry_after(3, {})
    item = probe.take()
    assert probe.lost == [Lost.OVERTAKEN]
    assert (item.first_seq, deltas_of(item)) == (4, ["done"])
    assert item.outcome is not None
    assert item.outcome.error_code == "worker_lost"


def test_the_end_of_a_stream_that_must_not_restart_says_why_its_worker_stopped() -> None:
    probe = Probe(tail=3, may_reset=False, interruption="worker_left")
    probe.outbox.reset()
    item = probe.take()
    assert probe.lost == [Lost.HANDED_OVER]
    assert item.outcome is not None
    assert item.outcome.error_code == "worker_left"


@pytest.mark.parametrize("limits", [{"max_events": 2}, {"max_events": 99, "max_bytes": 50}])
async def test_a_full_outbox_makes_the_generator_wait_for_room(limits: dict[str, int]) -> None:
    probe = Probe(**limits)  # type: ignore[arg-type]
    probe.put("a")
    assert not probe.outbox.full
    probe.put("b")
    assert probe.outbox.full
    waiting = asyncio.create_task(probe.outbox.wait_for_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    probe.take()
    await waiting


@pytest.mark.parametrize("how", ["lost", "ended"])
async def test_no_generator_waits_for_room_in_a_lost_outbox(how: str) -> None:
    probe = Probe(max_events=1)
    probe.put("a")
    waiting = asyncio.create_task(probe.outbox.wait_for_room())
    await asyncio.sleep(0)
    if how == "lost":
        probe.outbox.lose(Lost.FENCED)
        assert probe.outbox.take() is None
    else:
        probe.outbox.end_with(Lost.REWOUND, 0)
        assert deltas_of(probe.take()) == ["done"]
    await waiting
    assert probe.outbox.lost is not None
    assert probe.lost == [probe.outbox.lost]


def test_the_end_includes_the_usage_in_a_former_workers_late_batch() -> None:
    probe = Probe()
    probe.outbox.bill.add({"type": "usage", "total_tokens": 1})
    probe.put("a")
    probe.outbox.finish(Outcome.completed("stop"))
    assert orjson.loads(probe.take().events.split(b"\n")[-1])["usage"] == {"total_tokens": 1}
    probe.outbox.retry_after(3, {5: {"total_tokens": 10}})
    item = probe.take()
    assert deltas_of(item) == ["reset", "a", "done"]
    assert item.outcome is not None
    assert item.outcome.usage == {"total_tokens": 11}
    assert Outcome.decode(item.events.split(b"\n")[-1]) == item.outcome
    assert item.outcome.usage_by_attempt == [
        {"epoch": 5, "usage": {"total_tokens": 10}},
        {"epoch": 7, "usage": {"total_tokens": 1}},
    ]


@pytest.mark.parametrize("lost", [Lost.REJECTED, Lost.REWOUND, Lost.OVERTAKEN, Lost.HANDED_OVER])
def test_an_end_forced_by_the_log_includes_the_usage(lost: Lost) -> None:
    probe = Probe()
    probe.outbox.bill.add({"type": "usage", "total_tokens": 1})
    probe.outbox.end_with(lost, 2)
    outcome = probe.take().outcome
    assert outcome is not None
    assert outcome.usage == {"total_tokens": 1}
