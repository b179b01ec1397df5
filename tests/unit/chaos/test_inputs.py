"""The account of inputs and waits, with every violation fed in, and the generator that receives them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import orjson
import pytest

from baton.chaos.account import Account, Contract, Expected
from baton.chaos.deltas import Delta, write
from baton.chaos.generators import Answer, asking
from baton.chaos.inputs import Inputs, Sent
from baton.chaos.tool_calls import FILE_VARIABLE
from baton.generators import GenerationRequest, SoFar
from baton.generators.inbox import Inbox, InputMemory

ANSWER = Answer(events=6, rate=1e9, burst=3, save_every=4, messages=2, ask_every=2)
ASKED = Expected(6, Contract.CONTINUES, waits=ANSWER.waits, inputs=ANSWER.inputs)


def delta(number: int) -> dict[str, Any]:
    return {"type": "text", "delta": write(Delta("aa", number))}


def received(number: int, key: str) -> dict[str, Any]:
    return {"type": "custom", "name": "input", "data": {"n": number, "key": key}}


def waiting(name: str) -> dict[str, Any]:
    return {"type": "waiting", "for": {"type": "approval", "calls": [name]}, "until": None}


def resumed(run: int, reason: str = "input") -> dict[str, Any]:
    return {"type": "resumed", "run": run, "reason": reason}


DONE = {"type": "done", "status": "completed"}
FIRST = [delta(1), received(1, "message-1"), delta(2), waiting("call-1"), resumed(2), received(2, "call-1")]
SECOND = [delta(3), delta(4), waiting("call-2"), resumed(3), received(3, "message-2"), waiting("call-2"), resumed(4)]
THIRD = [received(4, "call-2"), delta(5), delta(6), waiting("pause-3"), resumed(5, "deadline"), DONE]
WHOLE = [*FIRST, *SECOND, *THIRD]


def account_of(events: list[dict[str, Any]]) -> tuple[Account, set[str]]:
    account = Account(ask_every=ANSWER.ask_every)
    found = [item for seq, event in enumerate(events, 1) for item in account.receive(seq, orjson.dumps(event))]
    return account, {complaint.kind for complaint in [*found, *account.ending(ASKED)]}


def test_inputs_and_waits_in_their_places_are_right() -> None:
    account, kinds = account_of(WHOLE)
    assert kinds == set()
    assert account.inputs == ["message-1", "call-1", "message-2", "call-2"]
    assert account.waits == {"call-1", "call-2", "pause-3"}


@pytest.mark.parametrize(
    ("events", "kinds"),
    [
        # An input that is repeated, out of order, or in the middle of a delta.
        ([*FIRST, received(2, "call-1")], {"wrong input", "no end"}),
        ([*FIRST, received(3, "call-1")], {"wrong input", "no end"}),
        ([*FIRST, received(4, "message-2")], {"wrong input", "no end"}),
        ([{"type": "text", "delta": "a"}, received(1, "message-1")], {"wrong input", "no end"}),
        # It continued without the approval, or waits for one that it has, or in a wrong place.
        ([*FIRST[:5], delta(3)], {"mixture", "no end"}),
        ([*FIRST, waiting("call-1")], {"mixture", "no end"}),
        ([*FIRST, waiting("call-2")], {"mixture", "no end"}),
        ([*FIRST, delta(3), waiting("call-1")], {"mixture", "no end"}),
        # It wrote while it waited.
        ([*FIRST[:4], received(2, "call-1")], {"mixture", "no end"}),
        # An input is missing at the end, or a wait.
        ([*FIRST, *SECOND[:4], received(3, "call-2"), *THIRD[1:]], {"wrong end"}),
        ([*FIRST, *SECOND[:2], received(3, "message-2"), *THIRD], {"wrong end"}),
        # Nobody had a reason to continue it.
        ([*FIRST[:4], resumed(2, "other"), *WHOLE[5:]], {"contract"}),
    ],
)
def test_what_is_wrong_with_inputs_and_waits_is_detected(events: list[dict[str, Any]], kinds: set[str]) -> None:
    assert account_of(events)[1] == kinds


async def nowhere(_key: str, _data: Any) -> int | None:
    return None


@pytest.mark.parametrize(
    ("sent", "events", "kinds"),
    [
        ({"message-1": 1, "call-1": 2, "message-2": 3, "call-2": 4}, WHOLE, set()),
        # The replies to the rest were lost.
        ({"message-1": 1}, WHOLE, set()),
        ({"message-1": 2, "call-1": 1}, WHOLE, {"wrong input"}),
        ({"message-1": 1, "call-1": 2, "message-2": 3}, FIRST, {"lost input"}),
        ({"message-1": 1, "call-1": 2, "message-2": 3}, [*FIRST, DONE], {"lost input"}),
        ({"message-2": 3}, [*FIRST, {"type": "done", "status": "cancelled"}], set()),
    ],
)
def test_accepted_inputs_are_received_under_their_numbers(
    sent: dict[str, int], events: list[dict[str, Any]], kinds: set[str]
) -> None:
    account, _ = account_of(events)
    inputs = Inputs(ANSWER, [account], Random(1), nowhere)
    inputs.sent = {key: Sent(number, 0.0) for key, number in sent.items()}
    assert {complaint.kind for complaint in inputs.against(account, rewound=False)} == kinds
    assert inputs.against(account, rewound=True) == []


class Past:
    """What runs leave behind: the log, the last state, and how many inputs that covers."""

    def __init__(self) -> None:
        self.log: list[dict[str, Any]] = []
        self.state: Any = None
        self.covered = self.run = 0

    async def play(self, memory: InputMemory, most: int) -> bool:
        """Run until a wait or the end, or until the worker dies after `most` items; return whether it has ended."""
        self.run += 1
        inbox = Inbox(memory, self.covered)
        request = GenerationRequest(
            UUID(int=9), ANSWER.as_input(), {}, run=self.run, so_far=self._so_far(), state=self.state, inbox=inbox
        )
        if self.run > 1:
            self.log.append(resumed(self.run, "worker_lost"))
        items = asking(request)
        async for item in items:
            most -= 1
            if most < 0:
                await items.aclose()
                return False
            event = {"type": "text", "delta": item} if isinstance(item, str) else dict(item)
            if "state" in event:
                self.state, self.covered = event["state"], inbox.received
            if event["type"] == "wait":
                self.log.append({"type": "waiting", "for": event["for"], "until": None})
                return False
            if event["type"] not in {"state", "continue"}:
                self.log.append(event)
        return True

    def _so_far(self) -> SoFar:
        texts = [event["delta"] for event in self.log if event["type"] == "text"]
        return SoFar(len(self.log), "".join(texts), custom=[event for event in self.log if event["type"] == "custom"])


@pytest.mark.parametrize("most", range(1, 14))
async def test_however_often_its_worker_is_lost_it_receives_each_input_once(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "calls"))
    past, memory = Past(), InputMemory()
    memory.add({"key": "message-1"})
    ended, asked = False, {"message-1"}
    for limit in (most, 3, 1000, most, 1000, 1000, 1000, 1000):
        ended = ended or await past.play(memory, limit)
        last = past.log[-1] if past.log else {}
        if last.get("type") == "waiting" and (key := last["for"]["calls"][0]) not in asked and key.startswith("call"):
            asked.add(key)
            memory.add({"key": key})
            memory.add({"key": "message-2"}) if key == "call-1" else None
    assert ended
    account = Account(ask_every=ANSWER.ask_every)
    lines = [*past.log, DONE]
    found = [item for seq, event in enumerate(lines, 1) for item in account.receive(seq, orjson.dumps(event))]
    assert [*found, *account.ending(replace(ASKED, worker_troubled=True))] == []


async def test_another_input_than_the_log_has_is_an_error() -> None:
    memory = InputMemory([{"key": "message-2"}])
    request = GenerationRequest(
        UUID(int=9),
        ANSWER.as_input(),
        {},
        run=2,
        so_far=SoFar(2, delta(1)["delta"], custom=[received(1, "message-1")]),
        state={"token": "aa", "number": 0},
        inbox=Inbox(memory, 0),
    )
    with pytest.raises(RuntimeError, match="Input 1 is message-2, and the log has"):
        _ = [item async for item in asking(request)]
