"""What an append of a producer does, decided from the state of its stream alone."""

from __future__ import annotations

from uuid import UUID

import pytest
from tests.support.external import request, texts

from baton.db.external_appends import MOST_PRODUCERS, Appended, ProducerClaim, Refused, State
from baton.outcome import Outcome

STREAM = UUID(int=1)
STOP = Outcome.completed("stop")


def accept(state: State, lines: int = 1, **rest: object) -> Appended | Refused:
    return state.accept(request(STREAM, texts(*"x" * lines), **rest), max_bytes=1000)  # type: ignore[arg-type]


def test_each_append_moves_the_tail_by_its_messages() -> None:
    state = State(True, 0)
    assert accept(state, 3) == Appended(3, closed=False)
    assert accept(state, 1, by=("a", 0, 0)) == Appended(4, False, False, ProducerClaim("a", 0, 0))
    assert (state.tail, state.producers) == (4, 2)


@pytest.mark.parametrize(("carries_events", "tail"), [(True, 2), (False, 1)])
def test_the_terminal_event_is_a_message_only_where_messages_are_events(carries_events: bool, tail: int) -> None:
    state = State(carries_events, 0)
    assert accept(state, 1, outcome=STOP) == Appended(tail, closed=True)
    assert state.closed


def test_a_repeated_append_changes_nothing_and_names_the_last_number() -> None:
    state = State(True, 5, known={"a": (2, 7)})
    before = state.copy()
    assert accept(state, by=("a", 2, 4)) == Appended(5, False, True, ProducerClaim("a", 2, 7))
    assert state == before


@pytest.mark.parametrize(
    ("by", "refused"),
    [
        (("a", 1, 0), Refused("fenced", 5, number=2)),
        (("a", 1, 8), Refused("fenced", 5, number=2)),
        (("a", 2, 9), Refused("gap", 5, number=8)),
        (("a", 3, 1), Refused("epoch_must_begin_at_0", 5)),
        (("b", 0, 1), Refused("gap", 5, number=0)),
    ],
)
def test_a_wrong_number_is_refused_and_changes_nothing(by: tuple[str, int, int], refused: Refused) -> None:
    state = State(True, 5, known={"a": (2, 7), "b": None})
    before = state.copy()
    assert accept(state, by=by) == refused
    assert state == before


def test_a_new_epoch_begins_at_zero_and_fences_the_one_before() -> None:
    state = State(True, 5, producers=1, known={"a": (2, 7)})
    assert accept(state, by=("a", 5, 0)) == Appended(6, False, False, ProducerClaim("a", 5, 0))
    assert accept(state, by=("a", 2, 8)) == Refused("fenced", 6, number=5)
    assert state.producers == 1


def test_a_closed_stream_takes_nothing_but_what_it_took_before() -> None:
    state = State(True, 0)
    assert isinstance(accept(state, by=("a", 0, 0)), Appended)
    assert isinstance(accept(state, by=("a", 0, 1), outcome=STOP), Appended)
    closed = Refused("closed", 3, reason="stop")
    assert accept(state) == closed
    assert accept(state, by=("a", 0, 2)) == closed
    assert accept(state, by=("a", 0, 2), outcome=STOP) == closed
    assert accept(state, by=("b", 0, 0), outcome=STOP) == closed
    assert accept(state, by=("b", 0, 9)) == closed
    again = Appended(3, True, True, ProducerClaim("a", 0, 1))
    assert accept(state, by=("a", 0, 1), outcome=STOP) == again
    assert accept(state, by=("a", 0, 0)) == again
    # Closing it again is a success, but not with more messages.
    assert accept(state, 0, outcome=STOP) == Appended(3, True, True)
    assert accept(state, 1, outcome=STOP) == closed


def test_a_stale_producer_is_fenced_even_if_the_stream_is_closed() -> None:
    state = State(True, 5, closed=True, known={"a": (2, 7)})
    assert accept(state, by=("a", 1, 0)) == Refused("fenced", 5, number=2)


def test_stream_seq_rises_as_bytes_do() -> None:
    state = State(True, 0)
    assert isinstance(accept(state, stream_seq="09"), Appended)
    assert isinstance(accept(state, stream_seq="10"), Appended)
    assert accept(state, stream_seq="10") == Refused("stream_seq", 2)
    assert accept(state, stream_seq="0a") == Refused("stream_seq", 2)
    assert isinstance(accept(state), Appended)
    assert accept(state, stream_seq="1") == Refused("stream_seq", 3)
    assert isinstance(accept(state, stream_seq="a"), Appended)


def test_a_stream_has_a_largest_size_and_a_largest_number_of_producers() -> None:
    state = State(True, 0, size_bytes=990)
    assert accept(state) == Refused("too_large")
    assert isinstance(accept(state, 0, outcome=STOP), Appended), "closing needs no room"
    state = State(True, 0, producers=MOST_PRODUCERS, known={"old": (0, 0), "new": None})
    assert accept(state, by=("new", 0, 0)) == Refused("too_many_producers")
    assert isinstance(accept(state, by=("old", 0, 1)), Appended)


def test_only_what_is_true_for_ever_is_final() -> None:
    final = {"closed", "stream_seq"}
    others = ("not_found", "fenced", "gap", "epoch_must_begin_at_0", "too_large", "too_many_producers")
    assert all(Refused(each).is_final for each in final)  # type: ignore[arg-type]
    assert not any(Refused(each).is_final for each in others)  # type: ignore[arg-type]
    assert Appended(1, closed=False).is_final
    assert Appended(1, closed=True, duplicate=True).is_final
    assert not Appended(1, closed=False, duplicate=True).is_final


@pytest.mark.parametrize(
    ("claim", "producers", "proves"),
    [
        (ProducerClaim("a", 2, 8), 1, True),
        (ProducerClaim("a", 2, 8), 2, False),
        (ProducerClaim("a", 2, 7), 1, False),
        (ProducerClaim("a", 2, 9), 1, False),
        (ProducerClaim("a", 3, 0), 1, False),
        (ProducerClaim("b", 0, 0), 1, False),
        (None, 1, False),
    ],
)
def test_only_the_next_number_of_the_only_producer_shows_that_nothing_is_lost(
    claim: ProducerClaim | None, producers: int, proves: bool
) -> None:
    state = State(True, 5, producers=producers, known={"a": (2, 7), "b": None})
    assert state.is_continued_by(claim) is proves
