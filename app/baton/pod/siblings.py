"""The other pods of the same command, if it runs several processes. A pod knows no more of them than this."""

from __future__ import annotations

from typing import Protocol


class Siblings(Protocol):
    """Answer for all processes of the command, this pod's included."""

    async def render_metrics(self) -> bytes:
        """Return the metrics of all that answer in time, in Prometheus' text format."""
