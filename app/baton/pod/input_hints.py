"""The held requests of a pod that wait for inputs of streams, and the notifications that wake them.

A notification is only a hint: the request reads the inputs from the database. It reads them every few seconds without
one, too. Everything here runs on the pod's event loop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from uuid import UUID

from .subscriber import Subscriber


class InputHint:
    """Whether a stream may have a new input. A new hint taps the subscriber of the request that waits."""

    __slots__ = ("_given", "_subscriber")

    def __init__(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber
        self._given = False

    @property
    def given(self) -> bool:
        """Whether there was a hint since the last `take`."""
        return self._given

    def give(self) -> None:
        """Note that there may be a new input."""
        self._given = True
        self._subscriber.tap()

    def take(self) -> None:
        """Clear the hint: the inputs are about to be read."""
        self._given = False


class InputHints:
    """The hints of all requests that wait on this pod, by stream."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[InputHint]] = {}

    def hear(self, payload: str) -> None:
        """Take a notification of an input: the stream's id in hexadecimal."""
        for hint in self._waiting.get(payload, ()):
            hint.give()

    def give_all(self) -> None:
        """Note that notifications may have been lost."""
        for hints in self._waiting.values():
            for hint in hints:
                hint.give()

    @contextlib.contextmanager
    def waiting(self, stream_id: UUID, subscriber: Subscriber) -> Iterator[InputHint]:
        """Register a request that waits for inputs of a stream."""
        hint = InputHint(subscriber)
        self._waiting.setdefault(stream_id.hex, set()).add(hint)
        try:
            yield hint
        finally:
            self._waiting[stream_id.hex].discard(hint)
            if not self._waiting[stream_id.hex]:
                del self._waiting[stream_id.hex]
