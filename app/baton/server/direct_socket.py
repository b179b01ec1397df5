"""The client's socket as uvicorn's protocol offers it to a response: a `pod.sinks.DirectSocket`."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from ..pod.sinks import OnLost


class UvicornSocket:
    """Writes chunks of a chunked response, and reports when the connection is lost."""

    __slots__ = ("_cycle", "_on_lost")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._on_lost: OnLost | None = None

    def write(self, body: bytes) -> bool:
        """Write a chunk and return True, if one can be written now."""
        cycle = self._cycle
        if cycle.flow.write_paused or cycle.disconnected or cycle.response_complete or not cycle.chunked_encoding:
            return False
        if cycle.transport.is_closing():
            return False
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True

    def on_lost(self, on_lost: OnLost) -> bool:
        """Call back when the connection is lost; return False if a part of the request's body is yet to come."""
        cycle = self._cycle
        if cycle.more_body:
            return False
        # `receive` does the same. A connection that is not read does not notice that it is lost.
        cycle.flow.resume_reading()
        cycle.body = bytearray()
        if cycle.disconnected:
            on_lost()
        else:
            self._on_lost = on_lost
        return True

    def end(self) -> None:
        """Stop watching, as the response is complete or the connection is lost. If it is lost, call back."""
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None and self._cycle.disconnected:
            on_lost()

    def close(self) -> None:
        """Close the connection once the client has taken what was sent."""
        self._cycle.transport.close()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._cycle.transport.abort()
