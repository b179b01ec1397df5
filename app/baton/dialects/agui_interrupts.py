"""The id of an interrupt: it names the stream that asks, the wait that the client has seen, and the question."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_ID: Final = re.compile(r"interrupt_([0-9a-f]{32})\.([0-9]{1,10})\.([0-9]{1,10})", re.ASCII)


class Interrupt(NamedTuple):
    """What an interrupt is about.

    `wait` is the number of the event `waiting`; 0 if the stream has ended. `question` is that of the event
    `tool_approval`; 0 if the stream waits for anything else.
    """

    stream: str  # 32 hexadecimal digits
    wait: int
    question: int


def interrupt_id(interrupt: Interrupt) -> str:
    """Return the id."""
    return f"interrupt_{interrupt.stream}.{interrupt.wait}.{interrupt.question}"


def parse_interrupt_id(given: str) -> Interrupt | None:
    """Return what an id names; None if it is not an interrupt's."""
    found = _ID.fullmatch(given)
    return None if found is None else Interrupt(found[1], int(found[2]), int(found[3]))
