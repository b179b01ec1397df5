"""The verdict of chaos, with every violation fed in."""

from __future__ import annotations

import io
from collections.abc import Iterable
from random import Random

import orjson
import pytest
from rich.console import Console

from baton.chaos.account import Account, Contract, Expected, LogCopy
from baton.chaos.deltas import Delta, DeltaReader, read, write
from baton.chaos.experiment import Experiment, Options, run
from baton.chaos.memory import Samples
from baton.chaos.workload import StreamPlan
from baton.db.event_log import Batch
from baton.errors import ConfigurationError

RESTARTS, CONTINUES, FAILS = Contract.RESTARTS, Contract.CONTINUES, Contract.FAILS
ASKED = Expected(3, RESTARTS)


def text(characters: str) -> str:
    return orjson.dumps({"type": "text", "delta": characters}).decode()


def delta(number: int, token: str = "aa") -> str:
    return text(write(Delta(token, number)))


def resumed(run: int = 2, reason: str = "worker_lost") -> str:
    return orjson.dumps({"type": "resumed", "run": run, "reason": reason}).decode()


def reset(reason: str = "worker_lost") -> str:
    return orjson.dumps({"type": "reset", "reason": reason}).decode()


def call(index: int) -> str:
    return orjson.dumps({"type": "tool_call", "index": index - 1, "id": f"step-{index}", "name": "count"}).decode()


def result(index: int, nonce: str = "11") -> str:
    return orjson.dumps({"type": "tool_result", "id": f"step-{index}", "result": {"nonce": nonce}}).decode()


def done(status: str = "completed", code: str | None = None) -> str:
    return orjson.dumps({"type": "done", "status": status, "error": {"code": code} if code else None}).decode()


RESET = reset()
WHOLE = [delta(1), delta(2), delta(3), done()]


def told(events: Iterable[tuple[int, str]], log: list[str] | None = None, asked: Expected = ASKED) -> set[str]:
    """The kinds of all complaints about a viewer that received this of a stream whose log is that."""
    account = Account(asked.step_every)
    found = [complaint for seq, line in events for complaint in account.receive(seq, line.encode())]
    found += account.ending(asked)
    found += account.against(copy_of(WHOLE if log is None else log))
    return {complaint.kind for complaint in found}


def copy_of(lines: list[str], status: str = "completed") -> LogCopy:
    return LogCopy([Batch(1, len(lines), True, "\n".join(lines))], status)


def numbered(lines: list[str]) -> list[tuple[int, str]]:
    return list(enumerate(lines, 1))


def test_a_complete_stream_has_no_faults() -> None:
    assert told(numbered(WHOLE)) == set()
    assert copy_of(WHOLE).complaints == []


def test_a_restarted_stream_has_no_faults() -> None:
    lines = [delta(1), RESET, delta(1, "bb"), delta(2, "bb"), delta(3, "bb"), done()]
    assert told(numbered(lines), lines) == set()


def test_a_continued_stream_has_no_faults() -> None:
    first, second = write(Delta("aa", 2))[:7], write(Delta("aa", 2))[7:]
    lines = [delta(1), text(first), resumed(2), text(second), resumed(4, "worker_left"), delta(3), done()]
    assert told(numbered(lines), lines, Expected(3, CONTINUES)) == set()


STEPS = [delta(1), call(1), result(1), delta(2), call(2), result(2), delta(3), call(3), result(3), done()]


def test_steps_are_expected_where_they_belong() -> None:
    lines = [delta(1), call(1), RESET, *STEPS]
    assert told(numbered(lines), lines, Expected(3, RESTARTS, step_every=1)) == set()
    lines = [*STEPS[:2], resumed(), *STEPS[2:]]
    assert told(numbered(lines), lines, Expected(3, CONTINUES, step_every=1)) == set()


@pytest.mark.parametrize(
    ("lines", "kinds"),
    [
        ([*STEPS[:3], resumed(), *STEPS[4:]], {"mixture"}),
        ([*STEPS[:2], resumed(), *STEPS[1:]], {"mixture", "wrong end"}),
        ([*STEPS[:3], resumed(), *STEPS[2:]], {"mixture", "wrong end"}),
        ([*STEPS[:1], resumed(), *STEPS[2:]], {"mixture", "wrong end"}),
        ([*STEPS[:8], done()], {"wrong end"}),
        ([text(write(Delta("aa", 1))[:5]), call(1), result(1), done()], {"mixture", "wrong end"}),
        ([*STEPS[:9], text("aa"), done()], {"wrong end"}),
    ],
)
def test_a_misplaced_missing_or_repeated_step_is_detected(lines: list[str], kinds: set[str]) -> None:
    assert told(numbered(lines), lines, Expected(3, CONTINUES, step_every=1)) == kinds


@pytest.mark.parametrize(
    ("interruption", "asked", "allowed"),
    [
        (resumed(), Expected(3, CONTINUES), True),
        (resumed(reason="worker_left"), Expected(3, CONTINUES), True),
        (resumed(reason="output_differs"), Expected(3, CONTINUES), False),
        (resumed(run=1), Expected(3, CONTINUES), False),
        (resumed(), Expected(3, CONTINUES, worker_troubled=False), False),
        (resumed(), Expected(3, RESTARTS), False),
        (resumed(), Expected(3, FAILS), False),
        (reset(), Expected(3, RESTARTS), True),
        (reset("worker_left"), Expected(3, RESTARTS), True),
        (reset("output_differs"), Expected(3, RESTARTS), False),
        (reset(), Expected(3, RESTARTS, worker_troubled=False), False),
        (reset(), Expected(3, CONTINUES), False),
        (reset(), Expected(3, CONTINUES, rewound=True), False),
        (reset("output_differs"), Expected(3, CONTINUES), False),
        (reset("output_differs"), Expected(3, CONTINUES, step_forgotten=True), True),
        (reset(), Expected(3, FAILS), False),
    ],
)
def test_each_contract_allows_only_its_own_interruptions(interruption: str, asked: Expected, allowed: bool) -> None:
    rest = WHOLE if "reset" in interruption else WHOLE[1:]
    lines = [delta(1), interruption, *rest]
    assert bool(told(numbered(lines), lines, asked)) is not allowed


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_step_with_another_result_after_a_reset_needs_a_forgotten_one(forgotten: bool) -> None:
    lines = [delta(1), call(1), result(1), RESET, delta(1), call(1), result(1, "22"), done()]
    asked = Expected(1, RESTARTS, step_every=1, step_forgotten=forgotten)
    assert told(numbered(lines), lines, asked) == (set() if forgotten else {"contract"})


@pytest.mark.parametrize(
    ("order", "kinds"),
    [
        ([1, 3, 4], {"missing", "not the log", "wrong end"}),
        ([2, 3, 4], {"missing", "mixture", "not the log"}),
        ([1, 2, 2, 3, 4], {"repeated"}),
        ([1, 1, 2, 3, 4], {"repeated"}),
        ([1, 3, 2, 4], {"missing", "out of order", "wrong end"}),
        ([1, 2, 3, 4, 4], {"repeated", "second end"}),
        ([1, 2, 3], {"no end", "not the log"}),
        ([], {"no end", "not the log"}),
    ],
)
def test_a_wrong_order_is_detected(order: list[int], kinds: set[str]) -> None:
    assert told([(seq, WHOLE[seq - 1]) for seq in order]) == kinds


def test_an_event_that_arrives_later_counts_as_misplaced() -> None:
    account = Account()
    for seq in (1, 4, 3):
        account.receive(seq, WHOLE[seq - 1].encode())
    assert (account.missing, account.misplaced, account.repeated, account.tail) == (1, 1, 0, 4)


@pytest.mark.parametrize(
    ("lines", "kinds"),
    [
        ([*WHOLE, done()], {"second end"}),
        ([*WHOLE, delta(4)], {"after the end"}),
        ([delta(1), delta(2), delta(3, "bb"), done()], {"mixture"}),
        ([delta(1), delta(3), delta(3), done()], {"mixture"}),
        ([delta(1), RESET, delta(2), delta(3), done()], {"mixture"}),
        ([delta(1), resumed(), delta(1), delta(2), delta(3), done()], {"mixture"}),
        ([delta(1), resumed(), delta(2, "bb"), delta(3, "bb"), done()], {"mixture"}),
        ([delta(1), resumed(), delta(3), done()], {"mixture"}),
        ([delta(1), delta(2), delta(3).replace(" 3 ", " 4 "), done()], {"mixture", "wrong end"}),
        ([delta(1), delta(2), done()], {"wrong end"}),
        (["{", delta(2), delta(3), done()], {"mixture"}),
        (['{"type":"custom"}', delta(1), delta(2), delta(3), done()], {"mixture"}),
    ],
)
def test_wrong_content_is_detected_even_if_the_log_agrees(lines: list[str], kinds: set[str]) -> None:
    asked = Expected(3, CONTINUES if any("resumed" in line for line in lines) else RESTARTS)
    assert told(numbered(lines), lines, asked) == kinds


def test_a_difference_from_the_log_is_detected_with_its_position() -> None:
    account = Account()
    for seq, line in numbered(WHOLE):
        account.receive(seq, line.encode())
    [complaint] = account.against(copy_of([delta(1), delta(2, "bb"), delta(3), done()]))
    assert (complaint.kind, complaint.seq) == ("not the log", 2)
    [complaint] = account.against(copy_of([*WHOLE, delta(5)]))
    assert complaint.seq == 5


@pytest.mark.parametrize(
    ("end", "asked", "kinds"),
    [
        (done("cancelled"), Expected(3, RESTARTS, cancelled=True), set()),
        (done("cancelled"), Expected(3, RESTARTS, cancelled=False), {"wrong end"}),
        (done("failed", "worker_lost"), Expected(3, FAILS), set()),
        (done("failed", "worker_lost"), Expected(3, FAILS, worker_troubled=False), {"wrong end"}),
        (done("failed", "worker_left"), Expected(3, FAILS), set()),
        (done("failed", "worker_left"), Expected(3, FAILS, worker_troubled=False), {"wrong end"}),
        (done("failed", "worker_lost"), Expected(3, RESTARTS), {"wrong end"}),
        (done("failed", "worker_left"), Expected(3, CONTINUES), {"wrong end"}),
        (done("failed", "log_rewound"), Expected(3, CONTINUES), {"wrong end"}),
        (done("failed", "log_rewound"), Expected(3, CONTINUES, rewound=True), set()),
        (done("failed", "storage_rejected"), Expected(3, RESTARTS), {"wrong end"}),
        (done("completed"), Expected(2, RESTARTS), {"wrong end"}),
    ],
)
def test_an_unexplained_end_is_detected(end: str, asked: Expected, kinds: set[str]) -> None:
    lines = [delta(1), delta(2), delta(3), end]
    assert told(numbered(lines), lines, asked) == kinds


@pytest.mark.parametrize(
    ("batches", "status"),
    [
        ([Batch(1, 3, False, "\n".join(WHOLE[:3]))], "completed"),
        ([Batch(1, 3, False, "\n".join(WHOLE[:3])), Batch(5, 5, True, WHOLE[3])], "completed"),
        ([Batch(1, 5, True, "\n".join(WHOLE))], "completed"),
        ([Batch(1, 4, True, "\n".join(WHOLE))], "failed"),
        ([Batch(1, 4, True, "\n".join(WHOLE)), Batch(5, 5, True, done())], "completed"),
    ],
)
def test_a_broken_log_is_detected(batches: list[Batch], status: str) -> None:
    assert {complaint.kind for complaint in LogCopy(batches, status).complaints} == {"broken log"}


LOST_PART = [delta(1), delta(2), '{"type":"done","status":"failed","error":{"code":"log_rewound"}}']


@pytest.mark.parametrize(
    ("received", "refused", "rewound", "kinds"),
    [
        (LOST_PART, False, True, set()),
        (LOST_PART, False, False, {"wrong end"}),
        # It has what was lost, and no cursor of its leads anywhere.
        (WHOLE[:3], True, True, set()),
        (WHOLE[:3], False, True, {"no end", "not the log"}),
        (WHOLE[:3], True, False, {"no end", "not the log"}),
        # It had its whole answer before.
        (WHOLE, False, True, set()),
        (WHOLE, False, False, {"not the log"}),
        # Two answers in one are wrong whatever happened.
        ([delta(1), delta(2), delta(3, "bb"), done()], False, True, {"mixture"}),
        ([delta(1), delta(2), delta(3, "bb")], True, True, {"mixture"}),
        ([*LOST_PART, delta(4)], False, True, {"after the end", "not the log"}),
    ],
)
def test_after_a_promotion_a_refusal_is_allowed_and_a_mixture_is_not(
    received: list[str], refused: bool, rewound: bool, kinds: set[str]
) -> None:
    account = Account()
    found = [item for seq, line in numbered(received) for item in account.receive(seq, line.encode())]
    account.refused = refused
    asked = Expected(3, RESTARTS, rewound=rewound)
    found += account.ending(asked)
    found += account.against(copy_of(LOST_PART, "failed"), rewound=rewound)
    assert {complaint.kind for complaint in found} == kinds


def test_a_text_is_read_as_written() -> None:
    for padding in (0, 7):
        written = write(Delta("aa", 12), padding)
        assert read(written) == Delta("aa", 12)
        assert read(written.replace("12", "13")) is None
    assert read("") is None


def test_a_text_is_read_however_it_is_cut() -> None:
    deltas = [Delta("aa", number) for number in range(1, 6)]
    written = "".join(write(item, 3) for item in deltas)
    for size in (1, 2, 3, 7, 50, 1000):
        reader = DeltaReader()
        pieces = [written[start : start + size] for start in range(0, len(written), size)]
        assert [item for piece in pieces for item in reader.feed(piece)] == deltas
        assert reader.rest == ""


def test_the_same_seed_plans_the_same_streams() -> None:
    plans = [[StreamPlan.drawn(Random(seed), 40) for _ in range(5)] for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


def test_memory_grows_by_the_slope_after_the_second_minute() -> None:
    samples = Samples("pod-1", 1, 0.0)
    for at in range(0, 601, 5):
        samples.seconds.append(at)
        samples.megabytes.append(50 + min(at, 120) + 0.5 * max(0, at - 120) / 60)
    assert samples.growth == pytest.approx(0.5)
    assert len(samples.per_minute) == 11
    assert Samples("pod-2", 2, 0.0, samples.seconds[:40], samples.megabytes[:40]).growth is None


UNREACHABLE = "postgresql://u@127.0.0.1:1/x"


async def test_an_unknown_kind_of_fault_is_reported_at_once() -> None:
    chaos = Experiment(Options(seconds=1, faults=["postgres outage"]), UNREACHABLE, Console(file=io.StringIO()))
    with pytest.raises(ConfigurationError, match=r"Unknown faults: postgres outage\. Possible here: pod SIGKILL, "):
        await chaos.run()


def test_several_databases_are_never_the_users() -> None:
    with pytest.raises(ConfigurationError, match="Chaos brings its own servers for several databases"):
        run(Options(databases=2, database_url=UNREACHABLE))
