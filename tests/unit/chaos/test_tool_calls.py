"""The account of the steps' tool, and what it takes for an excuse."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from baton.chaos.tool_calls import Record, StepAccount, Tool, ToolCalls
from baton.generators.steps import StepCall, StepMemory, Steps

STREAM = UUID(int=1)


def called(run: int, nonce: str, index: int = 1, key: str = "k", at: float = 0.0) -> Record:
    return Record("called", "s", run, index, nonce, key, at)


def kept(run: int, nonce: str, index: int = 1, at: float = 0.0) -> Record:
    return Record("kept", "s", run, index, nonce, at=at)


@pytest.mark.parametrize(
    ("records", "kinds", "repeated"),
    [
        ([called(1, "a"), kept(1, "a")], set(), 0),
        # The next run gets the result.
        ([called(1, "a"), kept(1, "a"), kept(2, "a")], set(), 0),
        # The first run had no result.
        ([called(1, "a"), called(2, "b"), kept(2, "b")], set(), 1),
        # The first run was killed after the commit, before it noted the result.
        ([called(1, "a"), kept(2, "a")], set(), 0),
        # The first run was suspended just before its call, or after it.
        ([called(2, "b"), kept(2, "b"), called(1, "a")], set(), 1),
        ([called(1, "a"), called(2, "b"), kept(2, "b"), kept(1, "b")], set(), 1),
        # The result was kept, and the tool was called all the same.
        ([called(1, "a"), kept(1, "a"), called(2, "b"), kept(2, "a")], {"step repeated"}, 1),
        ([called(1, "a"), kept(1, "a"), called(1, "b")], {"step repeated"}, 1),
        ([called(1, "a"), called(1, "b"), kept(1, "a")], {"step repeated"}, 1),
        ([called(1, "a"), called(2, "b"), kept(1, "a"), kept(2, "b")], {"wrong result"}, 1),
        ([called(1, "a"), kept(1, "b")], {"wrong result"}, 0),
        ([called(1, "a"), called(2, "b", key="other"), kept(2, "b")], {"wrong key"}, 1),
        ([called(1, "a"), kept(1, "a"), called(1, "b", index=2), kept(1, "b", index=2)], {"wrong key"}, 0),
    ],
)
def test_a_call_is_repeated_only_before_its_result_is_kept(
    records: list[Record], kinds: set[str], repeated: int
) -> None:
    account = StepAccount(records)
    assert {complaint.kind for complaint in account.complaints} == kinds
    assert (account.repeated, account.forgotten) == (repeated, False)


@pytest.mark.parametrize(("kept_at", "lost"), [(5.0, True), (1.0, False)])
def test_only_a_result_that_the_database_lost_excuses_a_call(kept_at: float, lost: bool) -> None:
    records = [called(1, "a"), kept(1, "a", at=kept_at), called(2, "b", at=9), kept(2, "b", at=9)]
    account = StepAccount(records, lambda at: 4 < at < 6)
    assert account.forgotten is lost
    assert bool(account.complaints) is not lost


def test_the_log_has_only_results_that_runs_had() -> None:
    account = StepAccount([called(1, "a"), kept(1, "a")])
    assert account.against({1: {"a"}}) == []
    assert {complaint.kind for complaint in account.against({1: {"b"}})} == {"wrong result"}
    assert account.against({2: {"a"}}) != []


async def test_calls_of_several_runs_are_read_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "calls"
    reading = ToolCalls(file)
    assert reading.take("s") == []
    first, second = Tool(file, "s", 1), Tool(file, "s", 2)
    steps = Steps(StepMemory())

    async def run(tool: Tool) -> None:
        result = await steps.call(StepCall(STREAM, "count", tool.call, (1,), {"pause": 0}))
        tool.note_kept(1, result)

    await run(first)
    assert [(record.what, record.run) for record in reading.take("s")] == [("called", 1), ("kept", 1)]
    steps.restart()
    await run(second)
    assert [(record.what, record.run) for record in reading.take("s")] == [("kept", 2)]
    assert (reading.take("s"), reading.calls) == ([], 1)
