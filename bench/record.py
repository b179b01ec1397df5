"""The record of a run: a JSON file, from which reports are made."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import orjson

FILE: Final = "results.json"


@dataclass(frozen=True, slots=True)
class Range:
    """The median, the lowest and the highest value of all turns."""

    median: float
    lowest: float
    highest: float


@dataclass(slots=True)
class Record:
    """The record of a run. `runs` has the figures of each measurement, or its `error`."""

    machine: Mapping[str, Any]
    options: Mapping[str, Any]
    peers: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)

    def add(self, workload: str, title: str, peer: str, turn: int, figures: Mapping[str, Any]) -> None:
        """Add a measurement."""
        self.titles[workload] = title
        self.runs.append({"workload": workload, "peer": peer, "turn": turn, "figures": dict(figures)})

    def figures(self, workload: str, peer: str) -> list[Mapping[str, Any]]:
        """Return the figures of all turns that succeeded."""
        return [figures for figures in self._found(workload, peer) if "error" not in figures]

    def errors(self, workload: str, peer: str) -> list[str]:
        """Return the errors of all turns that failed."""
        return [figures["error"] for figures in self._found(workload, peer) if "error" in figures]

    def range(self, workload: str, peer: str, *names: str) -> Range | None:
        """Return the range of a figure over the turns; None without one. `"parts_us", "pod"` names a nested one."""
        values = []
        for figures in self.figures(workload, peer):
            value: Any = figures
            for name in names:
                value = value.get(name) if value is not None else None
            if value is not None:
                values.append(value)
        return Range(statistics.median(values), min(values), max(values)) if values else None

    def write(self, folder: Path) -> None:
        """Write the record into a folder."""
        (folder / FILE).write_bytes(orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2) + b"\n")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the record of a folder."""
        return cls(**orjson.loads((folder / FILE).read_bytes()))

    def _found(self, workload: str, peer: str) -> Iterator[dict[str, Any]]:
        for run in self.runs:
            if run["workload"] == workload and run["peer"] == peer:
                yield run["figures"]
