"""Samples the resident memory of processes, and fits its growth in those that live long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from statistics import linear_regression
from typing import Final

from ..errors import ConfigurationError

try:
    import psutil
except ImportError:
    raise ConfigurationError(
        '`baton chaos` needs psutil, which is not installed. Run: pip install "baton-stream[demo]"'
    ) from None

WARM_SECONDS: Final = 120
LEAST_SECONDS: Final = 180  # a shorter time gives no meaningful slope


@dataclass(slots=True)
class Samples:
    """The samples of one process: seconds since the first one, and megabytes."""

    name: str
    pid: int
    first_seconds: float
    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)

    @property
    def per_minute(self) -> list[float]:
        """Megabytes at the end of each minute."""
        minutes: dict[int, float] = {}
        for at, size in zip(self.seconds, self.megabytes, strict=True):
            minutes[int(at // 60)] = size
        return list(minutes.values())

    @property
    def growth(self) -> float | None:
        """Megabytes per minute after the first two minutes, by linear regression; None if the process is too young."""
        warm = [(at, size) for at, size in zip(self.seconds, self.megabytes, strict=True) if at >= WARM_SECONDS]
        if not warm or warm[-1][0] - warm[0][0] < LEAST_SECONDS:
            return None
        return linear_regression(*zip(*warm, strict=True)).slope * 60


class Memory:
    """The samples of all processes."""

    def __init__(self) -> None:
        self._processes: dict[int, Samples] = {}

    def sample(self, processes: Iterable[tuple[str, int]], now: float) -> None:
        """Add a sample of each process, given as name and pid."""
        for name, pid in processes:
            try:
                size = psutil.Process(pid).memory_info().rss / 2**20
            except psutil.Error:
                continue
            samples = self._processes.setdefault(pid, Samples(name, pid, now))
            samples.seconds.append(now - samples.first_seconds)
            samples.megabytes.append(size)

    def survivors(self, now: float, *, least_seconds: float) -> Iterator[Samples]:
        """Yield the processes that still run and have lived for at least this long."""
        for samples in self._processes.values():
            age = samples.seconds[-1] if samples.seconds else 0
            if age >= least_seconds and samples.first_seconds + age > now - 30:
                yield samples
