"""Tunes Python's garbage collector for processes that hold many objects and create few cycles."""

from __future__ import annotations

import gc
from typing import Final

# A pod keeps tens of thousands of batches, and each collection visits all young objects, then all old ones. With the
# default thresholds (700, 10, 10) that was a seventh of a pod's CPU time (300 streams, 25 batches a second each).
THRESHOLDS: Final = (10_000, 20, 50)


def collect_seldom() -> None:
    """Exclude existing objects from every collection, and collect rarely. Only for processes that Baton owns."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
