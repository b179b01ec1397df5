"""What happened to a database and to the workers that use it, and what that excuses.

Times are of `time.monotonic`. A promotion excuses a stream only if it may have lost it: the standby did not have the
stream as running, or its worker was in trouble at about that time. Every other stream must be healed. Each database has
its own `Trouble`: no other one's excuses its streams.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

# Trouble of a worker this long before a promotion, or after it, may cost it its streams: a lease, and a restart.
NEAR_SECONDS: Final = 10
# A worker keeps what it wrote in the last ten seconds (BATON_FAILOVER_KEEP_SECONDS). On a busy machine, a promotion may
# lose more than that.
KEPT_SECONDS: Final = 8


@dataclass(slots=True)
class Promotion:
    """The replacement of the primary by a standby that receives nothing more from `detached_at` on.

    `running` are the streams that ran on it then, with the names of their workers.
    """

    detached_at: float
    running: Mapping[str, str]
    stopped_at: float | None = None  # the old primary
    promoted_at: float | None = None

    def spans(self, at: float) -> bool:
        """Return whether what was committed at a moment may be lost."""
        return self.detached_at - 1 <= at <= (self.stopped_at or at)


class Trouble:
    """Records faults of workers and promotions, and answers what they may have done to a stream."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.count = 0  # of faults after which a worker may lose its streams
        self._clock = clock
        self._promotions: list[Promotion] = []
        self._of_workers: defaultdict[str, list[float]] = defaultdict(list)

    def note_worker(self, name: str) -> None:
        """Note that a fault of a worker begins or ends."""
        self.count += 1
        self._of_workers[name].append(self._clock())

    def note_detached(self, running: Mapping[str, str]) -> Promotion:
        """Note that the standby receives nothing more."""
        # The lost part may hold a worker's registration.
        self.count += 1
        promotion = Promotion(self._clock(), running)
        self._promotions.append(promotion)
        return promotion

    def forget(self, promotion: Promotion) -> None:
        """Forget a promotion that did not happen."""
        self._promotions.remove(promotion)

    def now(self) -> float:
        """Return the time as it is recorded."""
        return self._clock()

    def seconds_since(self, name: str) -> float:
        """Return for how many seconds a worker has been undisturbed."""
        marks = self._of_workers[name]
        return self._clock() - marks[-1] if marks else float("inf")

    def lost_at(self, at: float) -> bool:
        """Return whether a promotion may have lost what was committed at a moment."""
        return any(promotion.spans(at) for promotion in self._promotions)

    def lost_between(self, begin: float, end: float) -> bool:
        """Return whether a promotion may have lost something that was committed between two moments."""
        return any(
            promotion.detached_at - 1 <= end and begin <= (promotion.stopped_at or end)
            for promotion in self._promotions
        )

    def may_have_rewound(self, stream: str, created_at: float) -> bool:
        """Return whether a promotion may have cost a stream its answer, or its viewers their cursors."""
        return any(not self._spares(promotion, stream) for promotion in self._during(created_at))

    def survived(self, stream: str, created_at: float) -> bool:
        """Return whether promotions happened while a stream ran, and may have cost nothing."""
        return bool(self._during(created_at)) and not self.may_have_rewound(stream, created_at)

    def _during(self, created_at: float) -> list[Promotion]:
        """Return the promotions whose lost part may have something of a stream."""
        return [item for item in self._promotions if item.stopped_at is None or created_at <= item.stopped_at]

    def _spares(self, promotion: Promotion, stream: str) -> bool:
        worker = promotion.running.get(stream)
        if worker is None or (promotion.stopped_at or self._clock()) - promotion.detached_at > KEPT_SECONDS:
            return False
        begin, end = promotion.detached_at - NEAR_SECONDS, (promotion.promoted_at or self._clock()) + NEAR_SECONDS
        return not any(begin <= at <= end for at in self._of_workers[worker])
