from __future__ import annotations

from collections.abc import Iterable

import pytest

from baton.client import Connected, Disconnected, Received, Sighting
from baton.demo.verdict import Continuation, Resumption, Verdict, numbers

SAME_POD = "The answer did not change pods, so the demo shows nothing."
SAME_WORKER = "The answer did not change workers, so the demo shows nothing."


def received(seqs: Iterable[int], *, kind: str = "text", status: str | None = None) -> list[Sighting]:
    return [Received(seq, {"type": kind, "status": status, "delta": f"{seq} "}, 100 + seq) for seq in seqs]


def end(seq: int, status: str = "completed") -> list[Sighting]:
    return received([seq], kind="done", status=status)


def pod_change(cursor: int, at_seconds: float) -> list[Sighting]:
    return [Disconnected("gone", cursor, 0.1, at_seconds), Connected("pod-b", cursor, at_seconds + 0.25)]


def text_of(seen: Iterable[Sighting]) -> str:
    events = [item.event for item in seen if isinstance(item, Received)]
    return "".join(event["delta"] for event in events if event["type"] == "text")


def verdict(*parts: list[Sighting], expected: str | None = None) -> Verdict:
    """The verdict of an answer whose text is the expected one, unless another one is given."""
    seen: list[Sighting] = [Connected("pod-a", 0, 100), *(item for part in parts for item in part)]
    return Verdict.of(seen, asked_at_seconds=99, expected_text=text_of(seen) if expected is None else expected)


def test_a_complete_answer_that_changed_its_pod_and_worker_passes() -> None:
    resumed = received([5], kind="resumed")
    found = verdict(
        received([1, 2, 3]), pod_change(3, 103.5), received([4]), resumed, received([6]), end(7), expected="1 2 3 4 6 "
    )
    assert found.complaints() == []
    assert found.received == found.last_seq == 7
    assert found.pods == ("pod-a", "pod-b")
    assert found.resumptions == (Resumption(3, "pod-a", "pod-b", 0.25),)
    assert found.continuations == (Continuation(4, 2),)
    assert found.ends == ((7, "completed"),)
    assert found.time_to_first_token_seconds == 2
    assert found.duration_seconds == 8


@pytest.mark.parametrize("expected", ["1 3 4 ", "1 3 4 5 6 7 ", "1 3 4 5 5 ", "3 1 4 5 ", ""])
def test_a_text_that_is_not_the_expected_one_exactly_once_fails(expected: str) -> None:
    parts = (received([1]), received([2], kind="resumed"), received([3]), pod_change(3, 104), received([4, 5]), end(6))
    assert verdict(*parts, expected=expected).complaints() == ["The text differs from the recorded answer."]
    assert verdict(*parts, expected="1 3 4 5 ").complaints() == []


def test_an_answer_that_started_over_fails() -> None:
    resumed, reset = received([2], kind="resumed"), received([3], kind="reset")
    found = verdict(received([1]), resumed, reset, pod_change(3, 104), received([4, 5]), end(6), expected="4 5 ")
    assert found.complaints() == [
        "The answer started over.",
        "The text differs from the recorded answer.",
    ]


def test_the_first_token_is_text_reasoning_or_a_call() -> None:
    assert verdict(received([1], kind="custom"), received([2], kind="reasoning")).time_to_first_token_seconds == 3


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ([1, 2, 3], [5, 7], "Missing: 4, 6."),
        ([2, 3], [4, 5, 6, 7], "Missing: 1."),
        ([1, 2, 3], [3, 4, 5, 6, 7], "Received more than once: 3."),
        ([1, 2, 2, 3], [4, 5, 6, 7], "Received more than once: 2."),
        ([1, 3, 2], [4, 5, 6, 7], "Received out of order: 2."),
        ([1, 2, 3], [4, 5, 6, 7, 9], "Event 9 arrived after the terminal event 8."),
        ([1, 2, 3, 4, 5, 6, 7], [], ""),
    ],
)
def test_an_incomplete_answer_fails(before: list[int], after: list[int], complaint: str) -> None:
    ahead, behind = [seq for seq in after if seq < 8], [seq for seq in after if seq > 8]
    found = verdict(received(before), pod_change(before[-1], 110), received(ahead), end(8), received(behind))
    assert found.complaints() == ([complaint, SAME_WORKER] if complaint else [SAME_WORKER])


@pytest.mark.parametrize(
    ("endings", "complaint"),
    [
        ([], "The terminal event arrived 0 times instead of once."),
        ([end(6, "failed")], "The stream did not complete: its status is failed."),
    ],
)
def test_an_unsuccessful_end_fails(endings: list[list[Sighting]], complaint: str) -> None:
    found = verdict(received([1, 2, 3]), pod_change(3, 104), received([4, 5]), *endings)
    assert found.complaints() == [complaint, SAME_WORKER]


def test_two_ends_fail() -> None:
    found = verdict(received([1, 2]), pod_change(2, 104), received([3]), end(4), end(4))
    assert "The terminal event arrived 2 times instead of once." in found.complaints()
    assert "Received more than once: 4." in found.complaints()


def test_an_answer_from_one_pod_and_one_worker_proves_nothing() -> None:
    assert verdict(received([1, 2]), end(3)).complaints() == [SAME_POD, SAME_WORKER]


def test_a_pod_that_answered_and_sent_nothing_does_not_count() -> None:
    back = [Connected("pod-a", 2, 105)]
    found = verdict(received([1, 2]), pod_change(2, 104), list(back), received([3]), end(4))
    assert found.pods == ("pod-a",)
    assert found.complaints() == [SAME_POD, SAME_WORKER]


def test_an_empty_answer_fails() -> None:
    found = Verdict.of([], asked_at_seconds=0, expected_text="1 ")
    assert found.received == 0
    assert found.time_to_first_token_seconds is None
    assert len(found.complaints()) == 4


def test_numbers_are_abbreviated() -> None:
    assert numbers([3, 7, 8, 9, 12]) == "3, 7-9, 12"
    assert numbers(range(1, 100, 2)) == "1, 3, 5, 7, 9, 11, 13, 15, 17, 19 …"
