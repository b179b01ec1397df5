"""Which database gets a new stream, and where a key or a chat has its streams.

A stream without a name of its own goes to a database by weight. What a client names, an idempotency key or a chat, has
a *home*: the database that a weighted rendezvous hash of the name gives. So any pod finds it again without a directory,
and when a database is added or drained, only the names move that have to.

A name also has the homes that older lists of weights gave it. They are looked at as long as something may be there: a
key lives for hours, a chat as long as its streams.

Sources: Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998); for weights, Schindelhauer
and Schomaker, "Weighted distributed hash tables" (2005).
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from ..db.placements import Placement

_HASH_BYTES: Final = 8
_HASHES: Final = 1 << (8 * _HASH_BYTES)


class Placements:
    """The lists of weights that a pod knows, oldest first. Without any, the weights of its settings are in force."""

    def __init__(self, weights: Mapping[int, float]) -> None:
        self._weights = weights
        self._known: Sequence[Placement] = ()

    def learn(self, known: Sequence[Placement]) -> None:
        """Take all lists that the databases have, oldest first."""
        self._known = known

    @property
    def numbers(self) -> set[int]:
        """The numbers that databases have, or had."""
        return {number for item in self._known for number in item.weights} | self._weights.keys()

    def weights(self) -> Mapping[int, float]:
        """Return the weight of each database by its number, as it is in force now."""
        return self._in_force()[-1][1]

    def homes(self, name: str, lifetime: timedelta) -> list[int]:
        """Return the number of the database where a name has its home, then those where it had it in this time."""
        lists = self._in_force()
        oldest = datetime.now(UTC) - lifetime
        # A list was in force until the next one took its place.
        ends = [since for since, _ in lists[1:]]
        recent = [weights for (_, weights), end in zip(lists[:-1], ends, strict=True) if end >= oldest]
        found = [home(name, weights) for weights in (lists[-1][1], *reversed(recent))]
        return list(dict.fromkeys(found))

    def _in_force(self) -> list[tuple[datetime, Mapping[int, float]]]:
        now = datetime.now(UTC)
        started = [(item.effective_at, item.weights) for item in self._known if item.effective_at <= now]
        return started or [(datetime.fromtimestamp(0, UTC), self._weights)]


def name_of_chat(tenant: str, chat: str) -> str:
    """Return the name of a chat, which keeps its streams together."""
    return f"chat\n{tenant}\n{chat}"


def name_of_key(tenant: str, key: str) -> str:
    """Return the name of an idempotency key."""
    return f"key\n{tenant}\n{key}"


def name_of_path(tenant: str, path: str) -> str:
    """Return the name of a path of the Durable Streams protocol."""
    return f"path\n{tenant}\n{path}"


def chat_of(metadata: Mapping[str, Any]) -> str | None:
    """Return the id of a stream's chat as clients write it in an address; a client may have given a number."""
    chat = metadata.get("chat")
    if chat is None or isinstance(chat, bool):
        return None
    return str(int(chat)) if isinstance(chat, float) and chat.is_integer() else str(chat)


def home(name: str, weights: Mapping[int, float]) -> int:
    """Return the number of the database that gets a name."""
    return max(_taking(weights), key=lambda number: (_score(name, number, weights[number]), number))


def by_weight(weights: Mapping[int, float], numbers: Iterable[int]) -> list[int]:
    """Return those of the numbers that take new streams, in an order of chance: by weight, the first is the choice."""
    able = set(numbers) & set(_taking(weights))
    return sorted(able, key=lambda number: random.expovariate(weights[number]))


def _taking(weights: Mapping[int, float]) -> list[int]:
    return [number for number, weight in weights.items() if weight > 0]


def _score(name: str, number: int, weight: float) -> float:
    digest = hashlib.blake2b(b"%d\n%b" % (number, name.encode()), digest_size=_HASH_BYTES).digest()
    # Between 0 and 1, and never one of them.
    return -weight / math.log((int.from_bytes(digest) + 0.5) / _HASHES)
