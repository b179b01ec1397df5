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


class Told:
    """An outbox, and what it told its writer and its run."""

    def __init__(self, *, tail: int = 0, max_events: int = 3, max_bytes: int = 1 << 20, may_reset: bool = True) -> None:
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
        )

    def put(self, *words: str) -> None:
        for word in words:
            self.outbox.put(encode_text(word))

    def take(self) -> Append:
        item = self.outbox.take()
        assert item is not None
        return item


def told_by(item: Append) -> list[str]:
    events = map(orjson.loads, item.events.split(b"\n"))
    return [event.get("delta") or event["type"] for event in events]


def test_a_batch_is_numbered_after_the_tail() -> None:
    told = Told(tail=4)
    told.put("a", "b")
    item = told.take()
    assert (item.first_seq, item.last_seq, item.epoch, told_by(item)) == (5, 6, 7, ["a", "b"])
    told.outbox.written(6, terminal=False)
    told.put("c")
    assert told.take().first_seq == 7


def test_a_batch_in_flight_keeps_its_boundaries() -> None:
    told = Told()
    told.put("a")
    first = told.take()
    told.put("b")
    told.outbox.finish(Outcome.completed("stop"))
    assert told.take() == first
    assert told.outbox.still_has(first)
    told.outbox.written(1, terminal=False)
    assert not told.outbox.still_has(first)
    second = told.take()
    assert told_by(second) == ["b", "done"]
    assert second.outcome == Outcome.completed("stop")
    told.outbox.written(3, terminal=True)
    assert told.outbox.closed.is_set()
    assert told.outbox.take() is None


def test_the_first_event_and_the_terminal_one_are_urgent() -> None:
    told = Told()
    told.put("a", "b")
    told.take()
    told.outbox.written(2, terminal=False)
    told.put("c")
    told.outbox.finish(Outcome.completed("stop"))
    assert told.ready == [True, False, True]


def test_what_came_while_a_batch_was_tried_again_is_told_to_the_writer() -> None:
    told = Told()
    told.put("a")
    told.take()
    told.put("b")
    told.outbox.retry()
    told.take()
    told.ready.clear()
    told.outbox.written(1, terminal=False)
    assert told.ready
    assert told_by(told.take()) == ["b"]


def test_nothing_follows_the_terminal_event() -> None:
    told = Told()
    told.outbox.finish(Outcome.cancelled())
    told.put("late")
    assert told_by(told.take()) == ["done"]


def test_a_former_workers_late_batch_is_reset_by_whoever_thought_that_there_was_none() -> None:
    told = Told()
    told.put("a")
    told.take()
    told.outbox.retry_after(3, {})
    item = told.take()
    assert (item.first_seq, item.last_seq, told_by(item)) == (4, 5, ["reset", "a"])
    told.outbox.retry_after(5, {})
    assert told_by(told.take()) == ["reset", "a"]


def test_a_reset_is_not_repeated_when_the_place_was_taken() -> None:
    told = Told(tail=2)
    told.outbox.begin_anew()
    told.put("a")
    told.take()
    told.outbox.retry_after(3, {})
    assert told_by(told.take()) == ["reset", "a"]


def test_a_stream_that_cannot_be_reset_ends_with_what_it_has() -> None:
    told = Told(may_reset=False)
    told.put("a")
    told.take()
    told.outbox.retry_after(3, {})
    item = told.take()
    assert told.lost == [Lost.OVERTAKEN]
    assert (item.first_seq, told_by(item)) == (4, ["done"])
    assert item.outcome is not None
    assert item.outcome.error_code == "worker_lost"


@pytest.mark.parametrize("limits", [{"max_events": 2}, {"max_events": 99, "max_bytes": 50}])
async def test_a_full_one_lets_the_generator_wait_until_it_was_emptied(limits: dict[str, int]) -> None:
    told = Told(**limits)  # type: ignore[arg-type]
    told.put("a")
    assert not told.outbox.full
    told.put("b")
    assert told.outbox.full
    waiting = asyncio.create_task(told.outbox.wait_for_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    told.take()
    await waiting


@pytest.mark.parametrize("how", ["lost", "ended"])
async def test_nobody_waits_for_room_in_one_that_can_write_no_more(how: str) -> None:
    told = Told(max_events=1)
    told.put("a")
    waiting = asyncio.create_task(told.outbox.wait_for_room())
    await asyncio.sleep(0)
    if how == "lost":
        told.outbox.lose(Lost.FENCED)
        assert told.outbox.take() is None
    else:
        told.outbox.end_with(Lost.REWOUND, 0)
        assert told_by(told.take()) == ["done"]
    await waiting
    assert told.outbox.lost is not None
    assert told.lost == [told.outbox.lost]


def test_the_end_has_what_a_former_workers_late_batch_says_it_used() -> None:
    told = Told()
    told.outbox.bill.add({"type": "usage", "total_tokens": 1})
    told.put("a")
    told.outbox.finish(Outcome.completed("stop"))
    assert orjson.loads(told.take().events.split(b"\n")[-1])["usage"] == {"total_tokens": 1}
    told.outbox.retry_after(3, {5: {"total_tokens": 10}})
    item = told.take()
    assert told_by(item) == ["reset", "a", "done"]
    assert item.outcome is not None
    assert item.outcome.usage == {"total_tokens": 11}
    assert Outcome.decode(item.events.split(b"\n")[-1]) == item.outcome
    assert item.outcome.usage_by_attempt == [
        {"epoch": 5, "usage": {"total_tokens": 10}},
        {"epoch": 7, "usage": {"total_tokens": 1}},
    ]


@pytest.mark.parametrize("lost", [Lost.REJECTED, Lost.REWOUND, Lost.OVERTAKEN])
def test_an_end_that_the_log_brought_about_has_what_was_used(lost: Lost) -> None:
    told = Told()
    told.outbox.bill.add({"type": "usage", "total_tokens": 1})
    told.outbox.end_with(lost, 2)
    outcome = told.take().outcome
    assert outcome is not None
    assert outcome.usage == {"total_tokens": 1}
