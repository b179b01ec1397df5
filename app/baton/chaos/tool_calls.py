"""The tool that chaos' generators call as a step, and the account of its calls, outside Postgres.

Each call appends a line to one file before it does anything, and each run appends another one when it has the result.
An append of a line is atomic and survives the process. So the order of the lines is the order in which it happened,
whichever process wrote them.

A call may be repeated by a later run as long as no run has the result. A worker that was suspended may call the tool
although a later run has the result. Everything else is a complaint.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import orjson

from ..generators import idempotency_key
from .complaint import Complaint

FILE_VARIABLE: Final = "CHAOS_TOOL_CALLS"


@dataclass(frozen=True, slots=True)
class Record:
    """One line: a run `called` the tool for a step, or has its result (`kept`)."""

    what: str
    stream: str
    run: int
    index: int
    nonce: str  # of the call; it is in the result
    key: str = ""  # the idempotency key of the call
    at: float = 0.0  # `time.monotonic`, which all processes share


class Tool:
    """The tool of one run of a stream."""

    def __init__(self, file: Path, stream: str, run: int) -> None:
        self._file = file
        self._stream = stream
        self._run = run

    @classmethod
    def from_environment(cls, stream: str, run: int) -> Self:
        """Return the tool that writes to chaos' file."""
        return cls(Path(os.environ[FILE_VARIABLE]), stream, run)

    async def call(self, index: int, *, pause: float) -> dict[str, Any]:
        """Record a call, and work for `pause` seconds."""
        result = self._note_call(index)
        await asyncio.sleep(pause)
        return result

    def call_in_thread(self, index: int, *, pause: float) -> dict[str, Any]:
        """Record a call, and block for `pause` seconds."""
        result = self._note_call(index)
        time.sleep(pause)
        return result

    def note_kept(self, index: int, result: Mapping[str, Any]) -> None:
        """Record that this run has the result of a call."""
        self._append(Record("kept", self._stream, self._run, index, result["nonce"], at=time.monotonic()))

    def _note_call(self, index: int) -> dict[str, Any]:
        nonce = secrets.token_hex(4)
        key = idempotency_key()
        self._append(Record("called", self._stream, self._run, index, nonce, key, time.monotonic()))
        return {"index": index, "nonce": nonce}

    def _append(self, record: Record) -> None:
        opened = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(opened, orjson.dumps(asdict(record)) + b"\n")
        finally:
            os.close(opened)


class ToolCalls:
    """Reads the file while it grows, and keeps the records by stream."""

    def __init__(self, file: Path) -> None:
        self.calls = 0
        self._file = file
        self._read = 0
        self._records: defaultdict[str, list[Record]] = defaultdict(list)

    def take(self, stream: str) -> list[Record]:
        """Return the records of a stream, and forget them."""
        self._read_new()
        return self._records.pop(stream, [])

    def _read_new(self) -> None:
        if not self._file.exists():
            return
        with self._file.open("rb") as lines:
            lines.seek(self._read)
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                record = Record(**orjson.loads(line))
                self.calls += record.what == "called"
                self._records[record.stream].append(record)


class StepAccount:
    """What happened to the steps of one stream.

    `repeated` counts the calls after the first one of each step. `forgotten` is whether the database lost a result that
    it had kept, so that its call was repeated. `lost_at` returns whether what was committed at a moment may be lost.
    """

    def __init__(self, records: Iterable[Record], lost_at: Callable[[float], bool] = lambda _at: False) -> None:
        self.repeated = 0
        self.forgotten = False
        self.complaints: list[Complaint] = []
        self.nonces: defaultdict[int, set[str]] = defaultdict(set)  # of the results that runs had
        self._lost_at = lost_at
        self._calls: defaultdict[int, list[Record]] = defaultdict(list)
        self._kept: defaultdict[int, list[Record]] = defaultdict(list)
        for record in records:
            (self._add_call if record.what == "called" else self._add_kept)(record)
        self._check_keys()

    def against(self, results: Mapping[int, set[str]]) -> list[Complaint]:
        """Compare with the results in a log, by the index of their steps."""
        return [
            Complaint("wrong result", 0, f"step {index} has {sorted(found)} in the log, and runs had {sorted(had)}")
            for index, found in results.items()
            if not found <= (had := self.nonces[index])
        ]

    def _add_call(self, call: Record) -> None:
        earlier = self._calls[call.index]
        self.repeated += bool(earlier)
        if any(other.run == call.run for other in earlier):
            self._complain("step repeated", f"run {call.run} called step {call.index} twice")
        # A run before the one that has the result is a zombie's, and may not know yet.
        known = [kept for kept in self._kept[call.index] if kept.run <= call.run]
        if known and all(self._lost_at(kept.at) for kept in known):
            self.forgotten = True
        elif known:
            self._complain(
                "step repeated", f"run {call.run} called step {call.index}, whose result run {known[0].run} had"
            )
        earlier.append(call)

    def _add_kept(self, kept: Record) -> None:
        calls = [call.nonce for call in self._calls[kept.index]]
        if kept.nonce not in calls:
            self._complain("wrong result", f"run {kept.run} got {kept.nonce} for step {kept.index}; calls: {calls}")
        others = [other for other in self._kept[kept.index] if other.nonce != kept.nonce]
        if not all(self._lost_at(other.at) for other in others):
            self._complain("wrong result", f"run {kept.run} got another result of step {kept.index} than earlier runs")
        self._kept[kept.index].append(kept)
        self.nonces[kept.index].add(kept.nonce)

    def _check_keys(self) -> None:
        keys: dict[str, int] = {}
        for index, calls in self._calls.items():
            found = {call.key for call in calls}
            if len(found) > 1:
                self._complain("wrong key", f"the calls of step {index} have {len(found)} idempotency keys")
            for key in found:
                if keys.setdefault(key, index) != index:
                    self._complain("wrong key", f"steps {keys[key]} and {index} have the same idempotency key")

    def _complain(self, kind: str, detail: str) -> None:
        self.complaints.append(Complaint(kind, 0, detail))
