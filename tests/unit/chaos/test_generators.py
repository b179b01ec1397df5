"""The generators of chaos: whatever a first run left, a second one completes the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest

from baton.chaos.account import Account, Contract, Expected
from baton.chaos.generators import Answer, continuing, replaying, restarting
from baton.chaos.tool_calls import FILE_VARIABLE, StepAccount, ToolCalls
from baton.generators import GenerationRequest, Generator, SoFar
from baton.generators.steps import Steps
from baton.worker.repetition import Repetition

ANSWER = Answer(events=12, rate=1e9, burst=3, large_every=4, padding=5, step_every=3, save_every=2)
Event = Mapping[str, Any]


@pytest.fixture(autouse=True)
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToolCalls:
    file = tmp_path / "calls"
    monkeypatch.setenv(FILE_VARIABLE, str(file))
    monkeypatch.setattr("baton.chaos.generators.LONGEST_CALL_SECONDS", 0)
    return ToolCalls(file)


@pytest.fixture
def first_run() -> GenerationRequest:
    """The request of a stream's first run. Steps keep their results for later ones."""
    return GenerationRequest(UUID(int=9), ANSWER.as_input(), {})


async def yielded(generator: Generator, request: GenerationRequest) -> list[Event]:
    assert isinstance(request.steps, Steps)
    request.steps.restart()  # as a run does: it counts the calls of its steps from 0
    items = [item async for item in generator(request)]
    return [{"type": "text", "delta": item} if isinstance(item, str) else item for item in items]


def later(first_run: GenerationRequest, items: Sequence[Event]) -> GenerationRequest:
    """The request of a second run, after a first one that got this far."""
    events = [item for item in items if item["type"] != "state"]
    states = [number for number, item in enumerate(items) if item["type"] == "state"]
    so_far = SoFar(
        len(events),
        "".join(item["delta"] for item in events if item["type"] == "text"),
        tool_calls=[item for item in events if item["type"] == "tool_call"],
        tool_results=[item for item in events if item["type"] == "tool_result"],
    )
    if not states:
        return replace(first_run, run=2, so_far=so_far)
    covered = sum(item["type"] != "state" for item in items[: states[-1]])
    return replace(first_run, run=2, so_far=so_far, state=items[states[-1]]["state"], state_seq=covered)


def unrepeated(first: Sequence[Event], second: Sequence[Event]) -> list[Event]:
    """What a worker adds to the log of a first run."""
    log = [item for item in first if item["type"] != "state"]
    start, rest = (second[0]["after"], second[1:]) if second[0]["type"] == "continue" else (len(log), second)
    repetition = Repetition(log[start:])
    new = [repetition.strip(item) for item in rest if item["type"] != "state"]
    assert repetition.complete
    return [*log, *(item for item in new if isinstance(item, Mapping))]


def complaints(log: Sequence[Event]) -> list[str]:
    account = Account(ANSWER.step_every)
    lines = [*log, {"type": "done", "status": "completed"}]
    found = [item for seq, event in enumerate(lines, 1) for item in account.receive(seq, orjson.dumps(event))]
    found += account.ending(Expected(ANSWER.events, Contract.CONTINUES, ANSWER.step_every))
    return [complaint.detail for complaint in found]


@pytest.mark.parametrize("generator", [continuing, replaying])
async def test_a_second_run_completes_what_any_first_run_left(
    generator: Generator, first_run: GenerationRequest, calls: ToolCalls
) -> None:
    first = await yielded(generator, first_run)
    # Of `continuing`, not even its first state may be in the database.
    for size in range(1, len(first) + 1):
        second = await yielded(generator, later(first_run, first[:size]))
        assert complaints(unrepeated(first[:size], second)) == []
    steps = StepAccount(calls.take(str(first_run.stream_id)))
    assert (steps.complaints, steps.repeated) == ([], 0)


async def test_a_run_cuts_its_text_differently_and_a_restarting_one_writes_another(
    first_run: GenerationRequest,
) -> None:
    first, second = [await yielded(replaying, replace(first_run, run=run)) for run in (1, 2)]
    pieces = [[item["delta"] for item in items if item["type"] == "text"] for items in (first, second)]
    assert "".join(pieces[0]) == "".join(pieces[1])
    assert pieces[0] != pieces[1]
    texts = ["".join(item.get("delta", "") for item in await yielded(restarting, first_run)) for _ in range(2)]
    assert texts[0] != texts[1]


async def test_a_state_that_is_too_old_is_an_error(first_run: GenerationRequest) -> None:
    first = await yielded(continuing, first_run)
    request = replace(later(first_run, first), state=first[0]["state"])
    with pytest.raises(RuntimeError, match="The state covers 0 deltas, and the log has 12"):
        await yielded(continuing, request)
