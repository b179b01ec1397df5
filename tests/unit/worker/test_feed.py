"""What a generator yields, on its way into the outbox."""

from __future__ import annotations

from uuid import uuid4

from baton.observability.metrics import TokenMetrics
from baton.worker.feed import Bounds, Feed
from baton.worker.outbox import Outbox
from baton.worker.run import UNKNOWN

STATE = {"type": "state", "state": 1}


def test_an_empty_delta_is_no_event_unless_it_carries_a_signature() -> None:
    outbox = Outbox(uuid4(), 1, 0, on_ready=lambda _: None, on_lost=lambda _: None, max_events=10)
    feed = Feed(outbox, Bounds(1000, 10, 1000, 1000), TokenMetrics(), UNKNOWN, started_at=0.0, saves=False)
    feed.take({"type": "reasoning", "delta": ""}, 1.0)
    assert outbox.take() is None
    feed.take({"type": "reasoning", "delta": "", "signature": "c2ln"}, 2.0)
    item = outbox.take()
    assert item is not None
    assert item.last_seq == 1


def test_a_state_that_covers_half_a_character_is_not_saved() -> None:
    """A run that continued from it would yield the other half alone."""
    outbox = Outbox(uuid4(), 1, 0, on_ready=lambda _: None, on_lost=lambda _: None, max_events=10)
    feed = Feed(outbox, Bounds(1000, 10, 1000, 1000), TokenMetrics(), UNKNOWN, started_at=0.0, saves=True)
    feed.take("a\ud83d", 1.0)
    feed.take(STATE, 2.0)
    assert not outbox.has_unsaved_state
    feed.take("\ude00", 3.0)
    feed.take(STATE, 4.0)
    item = outbox.take()
    assert item is not None
    assert item.state is not None
    assert (item.last_seq, item.state.after_seq) == (2, 2)
