"""The inputs that users send to the streams of `asking`, and whether each of them arrived, in order and once.

Messages come at any moment, also while the stream waits. An approval comes a while after viewers have seen the wait.
Each input goes to any pod, with its key as the Idempotency-Key, until one has answered. After a promotion what may have
been lost is sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from .account import Account
from .complaint import Complaint
from .generators import Answer

LOOK_SECONDS: Final = 0.1
LONGEST_DELIBERATION_SECONDS: Final = 3.0
AGAIN_SECONDS: Final = 1.0

# Sends an input until it is accepted; returns its number, or None if the stream has ended or is gone.
Post = Callable[[str, Mapping[str, Any]], Awaitable[int | None]]


@dataclass(slots=True)
class Statistics:
    """What became of the inputs of all streams. `longest_seconds`: from the reply to the event."""

    sent: int = 0
    received: int = 0
    waits: Counter[str] = field(default_factory=Counter)
    longest_seconds: float = 0.0


@dataclass(slots=True)
class Sent:
    """An input that a pod has accepted: its number, and when its reply came and its event was seen."""

    number: int
    replied_at: float
    seen_at: float | None = None


class Inputs:
    """The inputs of one stream. `run` sends them; then `against` judges what was received."""

    def __init__(
        self,
        answer: Answer,
        accounts: Sequence[Account],
        random: Random,
        post: Post,
        lost: Callable[[float], bool] = lambda _at: False,
    ) -> None:
        """`lost` returns whether a promotion may have lost what was committed at a moment."""
        self.sent: dict[str, Sent] = {}
        self._answer = answer
        self._accounts = accounts
        self._random = random
        self._post = post
        self._lost = lost
        self._messages = sorted(random.randint(0, answer.events - 1) for _ in range(answer.messages))

    async def run(self) -> None:
        """Send everything at its time. It returns once all was seen."""
        asked: set[str] = set()
        async with asyncio.TaskGroup() as group:
            for number, after in enumerate(self._messages, 1):
                group.create_task(self._send_message(f"message-{number}", after))
            while len(self._seen()) < self._answer.inputs:
                for name in self._waits() - asked:
                    asked.add(name)
                    if name.startswith("call"):
                        group.create_task(self._approve(name))
                await asyncio.sleep(LOOK_SECONDS)
                await self._send_lost_ones_again()

    def against(self, account: Account, *, rewound: bool) -> list[Complaint]:
        """Compare what was accepted with what one viewer received of the whole stream.

        After a promotion the numbers are others, and what was lost has no number.
        """
        if rewound:
            return []
        numbers = {key: number for number, key in enumerate(account.inputs, 1)}
        complaints = [
            Complaint("wrong input", 0, f"{key} is number {item.number}, and was received as {numbers[key]}")
            for key, item in self.sent.items()
            if numbers.get(key, item.number) != item.number
        ]
        if account.end is None or account.end["status"] == "completed":
            missing = self.sent.keys() - numbers.keys()
            complaints += [Complaint("lost input", account.tail, f"{key} was accepted") for key in sorted(missing)]
        return complaints

    def count(self, statistics: Statistics) -> None:
        """Add what became of them."""
        statistics.sent += len(self.sent)
        statistics.received += len(self._seen())
        statistics.waits.update("approval" if name.startswith("call") else "deadline" for name in self._waits())
        delays = [item.seen_at - item.replied_at for item in self.sent.values() if item.seen_at is not None]
        statistics.longest_seconds = max([statistics.longest_seconds, *delays])

    async def _send_message(self, key: str, after: int) -> None:
        while max(account.tail for account in self._accounts) < after:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)
        await self._send(key)

    async def _approve(self, key: str) -> None:
        await asyncio.sleep(self._random.uniform(0, LONGEST_DELIBERATION_SECONDS))
        await self._send(key)

    async def _send_lost_ones_again(self) -> None:
        old = time.monotonic() - AGAIN_SECONDS
        for key in self.sent.keys() - self._seen():
            if self.sent[key].replied_at < old and self._lost(self.sent[key].replied_at):
                await self._send(key)

    async def _send(self, key: str) -> None:
        kind = "approval" if key.startswith("call") else "message"
        number = await self._post(key, {"type": kind, "key": key})
        if number is not None:
            self.sent[key] = Sent(number, time.monotonic())

    def _waits(self) -> set[str]:
        return {name for account in self._accounts for name in account.waits}

    def _seen(self) -> set[str]:
        """Return the keys of all inputs in the answer, and note when they were seen."""
        seen = {key for account in self._accounts for key in account.inputs}
        for key in seen & self.sent.keys():
            self.sent[key].seen_at = self.sent[key].seen_at or time.monotonic()
        return seen


@contextlib.asynccontextmanager
async def sending(inputs: Inputs) -> AsyncIterator[None]:
    """Send inputs during the block."""
    task = asyncio.create_task(inputs.run())
    try:
        yield
    finally:
        task.cancel()
        result = (await asyncio.gather(task, return_exceptions=True))[0]
    if isinstance(result, Exception):
        raise result
