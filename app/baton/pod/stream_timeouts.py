"""The open event streams of a pod, and what ends them: a client that is too slow, a revoked key, old age, the drain.

One task sweeps all of them. It closes the stream of a client that is too slow, which means that it has accepted nothing
for `write_timeout_seconds`. It closes a stream whose API key was revoked. It closes an old stream, before a platform
would cut the connection, if its client reconnects by itself. It makes a stream that has been silent send a keep-alive
comment.

Everything here runs on the pod's event loop.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Final, Protocol

from ..observability.metrics.pod_metrics import Closing


class OpenStream(Protocol):
    """An event stream as its timeouts see it. All times are of `time.monotonic`."""

    @property
    def sending_since(self) -> float | None:
        """Since when it waits for its client to accept what it sends; None: it does not wait."""
        ...

    @property
    def last_sent_at(self) -> float:
        """When it last sent something."""
        ...

    @property
    def renew_at(self) -> float:
        """When to make its client reconnect; infinite if the client would not."""
        ...

    def admitted(self) -> bool:
        """Whether its client may still follow."""
        ...

    def close(self, reason: Closing) -> None:
        """End for this reason."""
        ...

    def keep_alive(self) -> None:
        """Send a comment, unless there are events to send."""
        ...


class OpenStreams:
    """The open event streams of a pod."""

    def __init__(self, *, sse_keep_alive_seconds: float, write_timeout_seconds: float, max_age_seconds: float) -> None:
        self._sse_keep_alive_seconds = sse_keep_alive_seconds
        self._write_timeout_seconds = write_timeout_seconds
        self._max_age_seconds = max_age_seconds
        self._open: set[OpenStream] = set()
        self.draining = False  # the pod is leaving

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    def add(self, stream: OpenStream) -> None:
        """Watch a stream until `remove`. A pod that drains closes it at once."""
        self._open.add(stream)
        if self.draining:
            # It was admitted before the drain began, and then waited for the database.
            stream.close("drained")

    def remove(self, stream: OpenStream) -> None:
        """Stop watching a stream, which has ended."""
        self._open.discard(stream)

    def renewal_time(self) -> float:
        """Return when a stream that opens now is to be renewed: at random, shortly before the maximum age."""
        return _now() + self._max_age_seconds * random.uniform(0.8, 1)

    async def run(self) -> None:
        """Sweep the streams until cancelled."""
        while True:
            await asyncio.sleep(min(1.0, self._sse_keep_alive_seconds / 10, self._write_timeout_seconds / 5))
            self.sweep(_now())

    def sweep(self, now: float) -> None:
        """Close the streams whose time is over, and keep the silent ones alive."""
        for stream in list(self._open):
            if stream.sending_since is not None:
                if self._is_too_slow(stream.sending_since, now):
                    stream.close("write_timeout")
            elif not stream.admitted():
                stream.close("revoked")
            elif now >= stream.renew_at:
                stream.close("max_age")
            elif now - stream.last_sent_at >= self._sse_keep_alive_seconds * 0.9:
                stream.keep_alive()

    async def drain(self, seconds: float) -> None:
        """Close all streams, spread over this time, and new ones at once."""
        self.draining = True
        leaving = list(self._open)
        random.shuffle(leaving)
        for stream in leaving:
            stream.close("drained")
            await asyncio.sleep(seconds / len(leaving))

    def _is_too_slow(self, sending_since: float, now: float) -> bool:
        """Whether a client has accepted nothing for longer than `BATON_WRITE_TIMEOUT_SECONDS`."""
        return now - sending_since > self._write_timeout_seconds


_now: Final = time.monotonic
