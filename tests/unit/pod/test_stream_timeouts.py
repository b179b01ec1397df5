"""When a pod closes its event streams, and for which reason."""

from __future__ import annotations

import math

import pytest

from baton.observability.metrics.pod_metrics import Closing
from baton.pod.stream_timeouts import OpenStreams


class Stream:
    """An event stream with times that the test sets."""

    def __init__(self) -> None:
        self.sending_since: float | None = None
        self.last_sent_at = 1000.0
        self.renew_at = math.inf
        self.revoked = False
        self.kept_alive = 0
        self.closed: list[Closing] = []

    def admitted(self) -> bool:
        return not self.revoked

    def close(self, reason: Closing) -> None:
        self.closed.append(reason)

    def keep_alive(self) -> None:
        self.kept_alive += 1


def opened(*streams: Stream) -> OpenStreams:
    found = OpenStreams(sse_keep_alive_seconds=20, write_timeout_seconds=5, max_age_seconds=100)
    for stream in streams:
        found.add(stream)
    return found


def test_a_client_that_reads_nothing_for_the_write_timeout_is_too_slow() -> None:
    stream = Stream()
    stream.sending_since = 1000
    streams = opened(stream)
    streams.sweep(1005)
    assert stream.closed == []
    streams.sweep(1005.1)
    assert stream.closed == ["write_timeout"]


def test_no_other_reason_is_checked_while_a_client_reads_nothing() -> None:
    stream = Stream()
    stream.sending_since, stream.revoked, stream.renew_at = 1000, True, 0
    opened(stream).sweep(1004)
    assert (stream.closed, stream.kept_alive) == ([], 0)


def test_a_stream_whose_key_was_revoked_is_closed_before_it_is_renewed() -> None:
    stream = Stream()
    stream.revoked, stream.renew_at = True, 0
    opened(stream).sweep(1000)
    assert stream.closed == ["revoked"]


def test_an_old_stream_is_renewed_if_its_client_reconnects() -> None:
    old, forever = Stream(), Stream()
    old.renew_at = 1010
    streams = opened(old, forever)
    streams.sweep(1009)
    streams.sweep(1010)
    assert (old.closed, forever.closed) == (["max_age"], [])


def test_a_silent_stream_is_kept_alive_shortly_before_the_interval_is_over() -> None:
    stream = Stream()
    streams = opened(stream)
    streams.sweep(1017)
    assert stream.kept_alive == 0
    streams.sweep(1018)
    assert (stream.kept_alive, stream.closed) == (1, [])


def test_a_removed_stream_is_left_alone() -> None:
    stream = Stream()
    streams = opened(stream)
    assert len(streams) == 1
    streams.remove(stream)
    streams.sweep(math.inf)
    assert (len(streams), stream.closed, stream.kept_alive) == (0, [], 0)


async def test_a_drain_closes_all_streams_and_those_that_open_later() -> None:
    first, second, late = Stream(), Stream(), Stream()
    streams = opened(first, second)
    await streams.drain(0)
    streams.add(late)
    assert [stream.closed for stream in (first, second, late)] == [["drained"]] * 3


@pytest.mark.parametrize("_try", range(20))
def test_streams_are_renewed_at_different_times_before_the_maximum_age(
    _try: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.pod.stream_timeouts._now", lambda: 1000.0)
    assert 1080 <= opened().renewal_time() <= 1100
