"""Accounts of what each viewer received, checked event by event and compared with the log at the end. Pure.

An account checks each event's number and text, the place of each step, and that nothing follows the terminal event. It
keeps only a checksum of each event's number and bytes, to compare with the log. At the end it is judged by the
stream's contract: whether the answer continues, restarts or fails when its worker is lost.
"""

from __future__ import annotations

import zlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import zip_longest
from typing import Any, Final

import orjson

from ..db.event_log import Batch
from ..db.streams import LIVE
from ..snapshot import Snapshot
from .complaint import Complaint
from .deltas import Delta, DeltaReader
from .generators import wait_name

# Error codes that chaos may cause. Losing a process or a connection must cause no other code.
LOST: Final = "worker_lost"
LEFT: Final = "worker_left"
REWOUND: Final = "log_rewound"
# Also a reason of a reset: a generator that repeats itself did not yield what the log has.
DIFFERS: Final = "output_differs"
# Reasons for which a waiting stream is continued.
INPUT: Final = "input"
DEADLINE: Final = "deadline"
# Instead of a status: the stream has no row.
GONE: Final = "gone"
_NOTHING: Final = -1


class Contract(Enum):
    """What happens to an answer whose worker is lost."""

    CONTINUES = "continues"  # exact text once: `resumed`, and never a `reset`
    RESTARTS = "restarts"  # a `reset`, and a whole new answer
    FAILS = "fails"

    @classmethod
    def of(cls, kind: str, policy: str) -> Contract:
        """Return the contract of a kind of generator under a policy for a lost worker."""
        if policy == "fail":
            return cls.FAILS
        return cls.CONTINUES if policy == "continue" and kind != "restarting" else cls.RESTARTS


@dataclass(frozen=True, slots=True)
class Expected:
    """What a stream must deliver: how many deltas, with a step after every so many, and what was done to it."""

    events: int
    contract: Contract
    step_every: int = 0
    waits: Sequence[str] = ()  # the names of its waits, if it has any
    inputs: int = 0  # how many it receives, messages and approvals
    cancelled: bool = False
    worker_troubled: bool = True  # a worker may have lost it
    rewound: bool = False  # the database went back in time while it ran, and may have lost it
    step_forgotten: bool = False  # the database lost the result of a step, and the tool was called again

    @property
    def excused(self) -> set[str]:
        """The error codes that are explained by what was done to the stream."""
        lost = self.worker_troubled and self.contract is Contract.FAILS
        causes = ((LOST, lost), (LEFT, lost), (REWOUND, self.rewound))
        return {code for code, happened in causes if happened}

    @property
    def excused_resets(self) -> set[str]:
        """The reasons of resets that may be in the log."""
        restarts = self.worker_troubled and self.contract is Contract.RESTARTS
        differs = self.step_forgotten and self.contract is Contract.CONTINUES
        return ({LOST, LEFT} if restarts else set()) | ({DIFFERS} if differs else set())

    @property
    def excused_resumes(self) -> set[str]:
        """The reasons of `resumed` events that may be in the log."""
        lost = {LOST, LEFT} if self.worker_troubled and self.contract is Contract.CONTINUES else set()
        # An input also ends the wait for a deadline.
        waits = {INPUT} if self.waits and self.inputs else set()
        pauses = {DEADLINE} if not all(map(_is_approval, self.waits)) else set()
        return lost | waits | pauses

    @property
    def needed_waits(self) -> set[str]:
        """The waits that must be in the log of a whole answer. An input that comes first spares it any other one."""
        only_approvals = self.inputs == sum(_is_approval(name) for name in self.waits)
        return {name for name in self.waits if only_approvals or _is_approval(name)}

    @property
    def steps(self) -> int:
        """How many steps a whole answer has."""
        return self.events // self.step_every if self.step_every else 0


class Account:
    """What one viewer received of one stream, event by event."""

    __slots__ = (
        "_ask_every",
        "_checks",
        "_missing",
        "_number",
        "_reader",
        "_run",
        "_step_every",
        "_steps",
        "_token",
        "_waiting",
        "end",
        "inputs",
        "misplaced",
        "received",
        "refused",
        "repeated",
        "resets",
        "results",
        "resumes",
        "tail",
        "waits",
    )

    def __init__(self, step_every: int = 0, ask_every: int = 0) -> None:
        """`step_every`: a step follows every Nth delta; 0: none. `ask_every`: so does a wait."""
        self.tail = 0  # the highest number so far
        self.received = 0
        self.repeated = 0
        self.misplaced = 0
        self.resets: Counter[str] = Counter()  # by reason
        self.resumes: Counter[str] = Counter()  # how often another run continued it, by reason
        self.results: defaultdict[int, set[str]] = defaultdict(set)  # of steps, by index, in all answers
        self.refused = False  # for good: the log lost an event that it has
        self.end: Mapping[str, Any] | None = None
        self.inputs: list[str] = []  # the keys of the inputs, in their order
        self.waits: set[str] = set()  # the names of the waits that have begun
        self._waiting = False
        self._ask_every = ask_every
        self._step_every = step_every
        self._missing: set[int] = set()
        self._checks = array("q")
        self._run = 1  # the last one that continued it
        self._start_answer()

    def _start_answer(self) -> None:
        self._reader = DeltaReader()
        self._token: str | None = None  # of the answer's deltas
        self._number = 0  # of the last delta
        self._steps: list[str] = []  # the types of their events

    @property
    def missing(self) -> int:
        """How many numbers below the highest have not arrived."""
        return len(self._missing)

    @property
    def interruptions(self) -> int:
        """How often another run continued it or started it over."""
        return self.resets.total() + self.resumes.total()

    @property
    def outcome(self) -> str:
        """How the stream ended, with the code of a failure."""
        end = self.end or {}
        return f"{end.get('status')} {(end.get('error') or {}).get('code', '')}".strip()

    def receive(self, seq: int, line: bytes) -> list[Complaint]:
        """Add an event; return what is wrong with it."""
        self.received += 1
        after_end = self.end is not None
        complaints = self._place(seq, line)
        try:
            event = orjson.loads(line)
        except ValueError:
            return [*complaints, Complaint("mixture", seq, f"not JSON: {line!r:.120}")]
        if after_end:
            kind = "second end" if event.get("type") == "done" else "after the end"
            complaints.append(Complaint(kind, seq, f"{line!r:.120}"))
        elif not complaints:
            complaints = self._content(seq, event)
        return complaints

    def against(self, log: LogCopy, *, rewound: bool = False) -> list[Complaint]:
        """Compare with the log, at the stream's end.

        After the database went back in time, two kinds of viewers may have events that the log lost: those that were
        refused for such an event, and those with a complete answer from before. A mixture of both answers was found
        earlier, by the content of the events.
        """
        if self._checks == log.checks or (rewound and (self.refused or self._has_other_end)):
            return []
        pairs = zip_longest(self._checks, log.checks, fillvalue=_NOTHING)
        seq = next(seq for seq, (mine, its) in enumerate(pairs, 1) if mine != its)
        return [Complaint("not the log", seq, f"received up to {self.tail}; the log holds {len(log.checks)}")]

    @property
    def _has_other_end(self) -> bool:
        return self.end is not None and (self.end.get("error") or {}).get("code") != REWOUND

    def _place(self, seq: int, line: bytes) -> list[Complaint]:
        check = checksum(seq, line)
        if seq == self.tail + 1:
            self.tail = seq
            self._checks.append(check)
            return []
        if seq > self.tail:
            expected, self.tail = self.tail + 1, seq
            self._missing.update(range(expected, seq))
            self._checks.extend([_NOTHING] * (seq - expected))
            self._checks.append(check)
            return [Complaint("missing", expected, f"{seq} arrived after {expected - 1}")]
        if seq in self._missing:
            self._missing.discard(seq)
            self._checks[seq - 1] = check
            self.misplaced += 1
            return [Complaint("out of order", seq, f"{seq} arrived after {self.tail}")]
        self.repeated += 1
        return [Complaint("repeated", seq, f"{seq} arrived again after {self.tail}")]

    def _content(self, seq: int, event: Mapping[str, Any]) -> list[Complaint]:
        kind = event.get("type")
        waited, self._waiting = self._waiting, kind == "waiting"
        if waited and kind not in {"resumed", "done"}:
            return [Complaint("mixture", seq, f"an event of type {kind!r} in a wait")]
        complaints: list[Complaint] = []
        match kind:
            case "text":
                complaints = self._text(seq, event["delta"])
            case "tool_call" | "tool_result":
                complaints = self._step(seq, event)
            case "custom" if event.get("name") == "input":
                complaints = self._input(seq, event["data"])
            case "waiting":
                complaints = self._wait(seq, event["for"]["calls"][0])
            case "resumed":
                complaints = self._resumed(seq, event)
            case "reset":
                self.resets[event["reason"]] += 1
                self._start_answer()
            case "done":
                self.end = event
            case _:
                complaints = [Complaint("mixture", seq, f"an event of type {kind!r}")]
        return complaints

    def _text(self, seq: int, text: str) -> list[Complaint]:
        return [found for delta in self._reader.feed(text) for found in self._delta(seq, delta, text)]

    def _delta(self, seq: int, delta: Delta | None, text: str) -> list[Complaint]:
        if delta is None:
            return [Complaint("mixture", seq, f"the checksum is wrong at the end of {text!r:.120}")]
        if self._token is None:
            self._token = delta.token
        expected = self._number + 1
        self._number = delta.number
        due = self._step_is_due(expected - 1) or self._approval_is_due(expected - 1)
        if delta.token != self._token or delta.number != expected or due:
            return [Complaint("mixture", seq, f"{delta} instead of {self._token} {expected}, {self._step_place}")]
        return []

    def _step(self, seq: int, event: Mapping[str, Any]) -> list[Complaint]:
        kind, index = event["type"], len(self._steps) // 2 + 1
        expected = "tool_result" if len(self._steps) % 2 else "tool_call"
        self._steps.append(kind)
        wrong = kind != expected or event["id"] != f"step-{index}" or self._number != index * self._step_every
        if wrong or self._reader.rest:
            return [Complaint("mixture", seq, f"{event} instead of {expected} {index}, {self._step_place}")]
        if kind == "tool_result":
            self.results[index].add(event["result"]["nonce"])
        return []

    def _step_is_due(self, number: int) -> bool:
        """Return whether an event of a step is missing after this many deltas."""
        return bool(self._step_every) and len(self._steps) != 2 * (number // self._step_every)

    @property
    def _step_place(self) -> str:
        return f"after {self._number} deltas and {len(self._steps)} events of steps"

    def _input(self, seq: int, data: Mapping[str, Any]) -> list[Complaint]:
        """Add an input: each one once, in the order of their numbers."""
        number, key = data["n"], data["key"]
        wrong = number != len(self.inputs) + 1 or key in self.inputs or bool(self._reader.rest)
        self.inputs.append(key)
        return [Complaint("wrong input", seq, f"number {number} is {key}; received: {self.inputs}")] if wrong else []

    def _wait(self, seq: int, name: str) -> list[Complaint]:
        """Add a wait: at its place, and only for an approval that has not come."""
        self.waits.add(name)
        wrong = self._wait_at(self._number) != name or bool(self._reader.rest) or name in self.inputs
        return [Complaint("mixture", seq, f"a wait for {name}, {self._step_place}")] if wrong else []

    def _wait_at(self, number: int) -> str:
        """Return the name of the wait after so many deltas; empty if there is none."""
        index, rest = divmod(number, self._ask_every) if self._ask_every else (0, 0)
        return wait_name(index) if index and not rest else ""

    def _approval_is_due(self, number: int) -> bool:
        """Return whether an approval is missing after this many deltas."""
        name = self._wait_at(number)
        return _is_approval(name) and name not in self.inputs

    def _resumed(self, seq: int, event: Mapping[str, Any]) -> list[Complaint]:
        """Count a run that continues: its text must continue, too."""
        before, self._run = self._run, event["run"]
        self.resumes[event["reason"]] += 1
        if self._run <= before:
            return [Complaint("mixture", seq, f"run {self._run} continues run {before}")]
        return []

    def ending(self, asked: Expected) -> list[Complaint]:
        """Return what is wrong with the stream's end, given what was expected."""
        if self.end is None:
            if self.refused and asked.rewound:
                return []
            return [Complaint("no end", self.tail, "no terminal event arrived")]
        return [*self._interruptions(asked), *self._wrong_end(asked, self.end)]

    def _interruptions(self, asked: Expected) -> list[Complaint]:
        """Return which resets and continuations are against the stream's contract."""
        wrong = [f"reset because of {reason}" for reason in self.resets.keys() - asked.excused_resets]
        wrong += [f"continued because of {reason}" for reason in self.resumes.keys() - asked.excused_resumes]
        wrong += [
            f"step {index} has the results {sorted(found)}"
            for index, found in self.results.items()
            if len(found) > 1 and not asked.step_forgotten
        ]
        return [Complaint("contract", self.tail, f"a stream that {asked.contract.value}: {what}") for what in wrong]

    def _wrong_end(self, asked: Expected, end: Mapping[str, Any]) -> list[Complaint]:
        error = end.get("error") or {}
        match end["status"]:
            case "completed" if (self._number, len(self._steps)) != (asked.events, 2 * asked.steps):
                wrong = f"completed {self._step_place}, not {asked.events} and {2 * asked.steps}"
            case "completed" if self._reader.rest:
                wrong = f"completed in the middle of a delta: {self._reader.rest!r:.120}"
            case "completed" if len(self.inputs) != asked.inputs or not asked.needed_waits <= self.waits:
                wrong = f"completed with the inputs {self.inputs} after the waits {sorted(self.waits)}"
            case "completed":
                return []
            case "cancelled" if asked.cancelled:
                return []
            case "failed" if error.get("code") in asked.excused:
                return []
            case _:
                wrong = f"the end is {orjson.dumps(end).decode()}"
        return [Complaint("wrong end", self.tail, wrong)]


class LogCopy:
    """A stream's log, read at its end: the checksum of each event, and what is wrong with the log itself."""

    def __init__(self, batches: Iterable[Batch], status: str) -> None:
        self.status = status
        self.live = status in LIVE
        self.checks = array("q")
        self.complaints: list[Complaint] = []
        terminal = 0
        self._lines: list[str] = []
        for batch in batches:
            self._lines += batch.lines
            seq = len(self.checks) + 1
            if batch.first_seq != seq or batch.last_seq != seq + len(batch.lines) - 1:
                detail = f"a batch of {len(batch.lines)} events claims {batch.first_seq} to {batch.last_seq}"
                self.complaints.append(Complaint("broken log", seq, detail))
            self.checks.extend(checksum(seq, line.encode()) for seq, line in enumerate(batch.lines, seq))
            terminal += batch.terminal
            end = orjson.loads(batch.lines[-1]) if batch.terminal else {}
            if batch.terminal and (end.get("type"), end.get("status")) != ("done", status):
                detail = f"the stream's row has status {status}, and its terminal event is {end}"
                self.complaints.append(Complaint("broken log", batch.last_seq, detail))
        if terminal != 1:
            self.complaints.append(Complaint("broken log", len(self.checks), f"{terminal} terminal batches"))

    @property
    def text(self) -> str:
        """The text of the answer."""
        return Snapshot.of(self._lines, len(self._lines)).text


def _is_approval(wait: str) -> bool:
    return wait.startswith("call")


def checksum(seq: int, line: bytes) -> int:
    """Return the checksum by which accounts and logs are compared."""
    return zlib.crc32(line, seq)
