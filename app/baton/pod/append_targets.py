"""The streams that producers append to, by tenant and path, as a pod remembers them: so an append costs no read.

A path may name another stream meanwhile, or none. An append that was written proves that its stream was still there.
Any other answer counts only once the stream was looked up again. Streams that expire are not remembered: a write does
not prove that they have not.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from ..db.external_streams import ExternalStream

MOST_TARGETS: Final = 10_000


class AppendTargets:
    """The streams that were appended to last. All of it runs on the event loop of the pod."""

    def __init__(self, most: int = MOST_TARGETS) -> None:
        self._most = most
        self._streams: OrderedDict[tuple[str, str], ExternalStream] = OrderedDict()

    def find(self, tenant: str, path: str) -> ExternalStream | None:
        """Return the stream that a tenant's path named before."""
        found = self._streams.get((tenant, path))
        if found is not None:
            self._streams.move_to_end((tenant, path))
        return found

    def remember(self, tenant: str, path: str, stream: ExternalStream) -> None:
        """Note what a path names now."""
        if stream.ttl_seconds is None and stream.expires_at is None:
            self._streams[tenant, path] = stream
            if len(self._streams) > self._most:
                self._streams.popitem(last=False)

    def forget(self, tenant: str, path: str) -> None:
        """Drop what a path named."""
        self._streams.pop((tenant, path), None)
