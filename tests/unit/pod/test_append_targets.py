"""The streams that a pod remembers by their paths."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from baton.db.external_streams import ExternalStream
from baton.pod.append_targets import AppendTargets

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def stream(*, ttl_seconds: int | None = None, expires_at: Any = None) -> ExternalStream:
    own = ("acme", "a", "text", "text/plain", ttl_seconds, expires_at, NOW)
    return ExternalStream(uuid4(), *own, 0, 0, 0, None, NOW, None, 0, False)  # type: ignore[arg-type]


def test_a_path_belongs_to_a_tenant() -> None:
    targets, one, other = AppendTargets(), stream(), stream()
    targets.remember("acme", "a", one)
    targets.remember("other", "a", other)
    assert targets.find("acme", "a") is one
    assert targets.find("other", "a") is other
    targets.forget("acme", "a")
    targets.forget("acme", "a")
    assert targets.find("acme", "a") is None
    assert targets.find("other", "a") is other


def test_what_was_not_used_for_longest_is_dropped() -> None:
    targets = AppendTargets(most=2)
    for path in "abac":
        if targets.find("", path) is None:
            targets.remember("", path, stream())
    assert [targets.find("", path) is not None for path in "abc"] == [True, False, True]


def test_a_stream_that_expires_is_not_remembered() -> None:
    targets = AppendTargets()
    targets.remember("", "a", stream(ttl_seconds=1))
    targets.remember("", "b", stream(expires_at=NOW))
    assert targets.find("", "a") is targets.find("", "b") is None
