"""The entries of `BATON_DATABASES`: the databases of one installation, each with its number and its weight.

A number is part of the ids of all streams that were created in the database (see `stream_ids`). So it never changes,
and no other database ever gets it. No error quotes a URL, which contains a password.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import SecretStr

from .dsn.connection_strings import Dsn
from .stream_ids import MAX_NUMBER

MAX_WEIGHT: Final = 1000

_NAME: Final = re.compile("[a-z0-9][a-z0-9_-]{0,31}")
_KEYS: Final = frozenset({"url", "listen_url", "number", "weight"})


@dataclass(frozen=True, slots=True)
class DatabaseEntry:
    """One database. Its share of new streams is its weight divided by the sum of all weights; 0 drains it.

    The only database of an installation with `BATON_DATABASE_URL` has no name, and the number 0.
    """

    name: str
    number: int
    weight: float
    url: SecretStr
    listen_url: SecretStr | None = None


def parse(given: Mapping[str, Any]) -> dict[str, DatabaseEntry]:
    """Return the entries by their names.

    Raises:
        ValueError: one is malformed, two have the same number, or none takes new streams.
    """
    entries = {
        name: item if isinstance(item, DatabaseEntry) else _entry(index, name, item)
        for index, (name, item) in enumerate(given.items(), 1)
    }
    by_number: dict[int, str] = {}
    for name, entry in entries.items():
        other = by_number.setdefault(entry.number, name)
        if other != name:
            raise ValueError(
                f"{other!r} and {name!r} have the same number, {entry.number}. Give each database a number of its own, "
                "and never one that another database had"
            )
    if entries and not any(entry.weight for entry in entries.values()):
        raise ValueError("every weight is 0, so no database takes new streams. Give one of them a weight above 0")
    return entries


def _entry(index: int, name: str, item: Any) -> DatabaseEntry:
    # Until it has the form of an entry, its name may be a secret in the wrong place.
    if not isinstance(item, dict) or "url" not in item:
        raise ValueError(
            f"the entry number {index} must be an object with a url: "
            '{"url": "postgresql://user:password@host:5432/name", "number": 1, "weight": 1}'
        )
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"the name of the entry number {index} must have 1 to 32 lower-case letters, digits, _ and -, and begin "
            "with a letter or a digit"
        )
    if item.keys() - _KEYS:
        raise ValueError(f"{name!r} has an unknown key. Known are {', '.join(sorted(_KEYS))}")
    url = _url(name, "url", item["url"])
    if url is None:
        raise ValueError(f"the url of {name!r} is empty. Give it one: postgresql://user:password@host:5432/name")
    return DatabaseEntry(
        name, _number(name, item), _weight(name, item), url, _url(name, "listen_url", item.get("listen_url"))
    )


def _url(name: str, key: str, value: Any) -> SecretStr | None:
    if not value:
        return None
    if not isinstance(value, str):
        raise ValueError(f"the {key} of {name!r} must be a string")
    try:
        Dsn.parse(value)
    except ValueError as error:
        raise ValueError(f"the {key} of {name!r}: {error}") from None
    return SecretStr(value)


def _number(name: str, item: Mapping[str, Any]) -> int:
    number = item.get("number")
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= MAX_NUMBER:
        raise ValueError(
            f"{name!r} needs a number from 0 to {MAX_NUMBER}, a whole one. A database that was the only one so far has "
            "the number 0"
        )
    return number


def _weight(name: str, item: Mapping[str, Any]) -> float:
    weight = item.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= MAX_WEIGHT:
        raise ValueError(f"the weight of {name!r} must be a number from 0 to {MAX_WEIGHT}; 0 drains the database")
    return float(weight)
