"""What may run beside a pod in its process: a worker, in a small deployment. A pod knows no more of it than this."""

from __future__ import annotations

from typing import Protocol

from prometheus_client import CollectorRegistry


class Companion(Protocol):
    """Leaves before the pod does, so that viewers see what it still writes."""

    @property
    def ready(self) -> bool:
        """Whether it works, and is not leaving."""

    @property
    def failed(self) -> bool:
        """Whether it has ended by itself. The process should end, too, and be started again."""

    def leave(self) -> None:
        """Begin to hand over its work; when called again, at once."""

    async def wait(self, timeout_seconds: float) -> None:
        """Wait until it has left, or this time has passed."""

    @property
    def metrics_registry(self) -> CollectorRegistry:
        """Its metrics."""
