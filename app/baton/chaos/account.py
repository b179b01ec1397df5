"""Accounts of what each viewer received, checked event by event and compared with the log at the end. Pure.

An account checks each event's number and text, and that nothing follows the terminal event. It keeps only a checksum of
each event's number and bytes, to compare with the log.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

import orjson

from ..db.event_log import Batch
from ..db.streams import LIVE
from .deltas import read

# Error codes that chaos may cause. Losing a process or a connection must cause no other code.
LOST: Final = "worker_lost"
LEFT: Final = "worker_left"
REWOUND: Final = "log_rewound"
# Instead of a status: the stream has no row.
GONE: Final = "gone"
_NOTHING: Final = -1


@dataclass(frozen=True, slots=True)
class Complaint:
    """One violation. `kind` is a word or two for the report; `seq` is the event at which it was seen."""

    kind: str
    seq: int
    detail: str


@dataclass(frozen=True, slots=True)
class Expected:
    """What a stream must deliver: how many deltas, under which policy, and what was done to it."""

    events: int
    policy: str
    cancelled: bool = False
    worker_troubled: bool = True  # a worker may have lost it
    rewound: bool = False  # the database went back in time while it ran

    @property
    def excused(self) -> set[str]:
        """The error codes that are explained by what was done to the stream."""
        causes = ((LOST, self.worker_troubled), (LEFT, self.worker_troubled), (REWOUND, self.rewound))
        return {code for code, happened in causes if happened}


class Account:
    """What one viewer received of one stream, event by event."""

    __slots__ = (
        "_checks",
        "_missing",
        "_number",
        "_run",
        "end",
        "misplaced",
        "received",
        "refused",
        "repeated",
        "resets",
        "resumed",
        "tail",
    )

    def __init__(self) -> None:
        self.tail = 0  # the highest number so far
        self.received = 0
        self.repeated = 0
        self.misplaced = 0
        self.resets = 0
        self.resumed = 0  # how often another worker continued it
        self.refused = False  # for good: the log lost an event that it has
        self.end: Mapping[str, Any] | None = None
        self._missing: set[int] = set()
        self._checks = array("q")
        self._run: str | None = None
        self._number = 0  # of the last delta of that run

    @property
    def missing(self) -> int:
        """How many numbers below the highest have not arrived."""
        return len(self._missing)

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
        match event.get("type"):
            case "text":
                return self._delta(seq, event["delta"])
            case "resumed":
                self.resumed += 1  # the numbers of its deltas must continue, too
            case "reset":
                self.resets += 1
                self._run, self._number = None, 0
            case "done":
                self.end = event
            case kind:
                return [Complaint("mixture", seq, f"an event of type {kind!r}")]
        return []

    def _delta(self, seq: int, delta: str) -> list[Complaint]:
        received = read(delta)
        if received is None:
            return [Complaint("mixture", seq, f"the checksum is wrong: {delta!r:.120}")]
        if self._run is None:
            self._run = received.run
        expected = self._number + 1
        self._number = received.number
        if received.run != self._run or received.number != expected:
            return [Complaint("mixture", seq, f"{received} instead of {self._run} {expected}")]
        return []

    def ending(self, asked: Expected) -> list[Complaint]:
        """Return what is wrong with the stream's end, given what was expected."""
        if self.end is None:
            if self.refused and asked.rewound:
                return []
            return [Complaint("no end", self.tail, "no terminal event arrived")]
        error = self.end.get("error") or {}
        match self.end["status"]:
            case "completed" if self._number != asked.events:
                wrong = f"completed after {self._number} of {asked.events} deltas"
            case "completed":
                return []
            case "cancelled" if asked.cancelled:
                return []
            case "failed" if error.get("code") in asked.excused:
                return []
            case _:
                wrong = f"the end is {orjson.dumps(self.end).decode()}"
        return [Complaint("wrong end", self.tail, wrong)]


class LogCopy:
    """A stream's log, read at its end: the checksum of each event, and what is wrong with the log itself."""

    def __init__(self, batches: Iterable[Batch], status: str) -> None:
        self.status = status
        self.live = status in LIVE
        self.checks = array("q")
        self.complaints: list[Complaint] = []
        terminal = 0
        for batch in batches:
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


def checksum(seq: int, line: bytes) -> int:
    """Return the checksum by which accounts and logs are compared."""
    return zlib.crc32(line, seq)
