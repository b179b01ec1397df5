"""Sentences and errors about a database, in the words of the settings that name it.

They are written for the database of `BATON_DATABASE_URL`. With several databases they name the entry of
`BATON_DATABASES` instead: the words are exchanged here, and nowhere else.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Final

from ..database_entries import DatabaseEntry
from ..errors import ConfigurationError

_SETTING: Final = re.compile(r"(?P<start>\A|[.?!] )?(?P<of>of )?BATON_(?P<listen>LISTEN_)?DATABASE_URL\b")


def sentence(text: str, database: DatabaseEntry) -> str:
    """Return a sentence about a database with the names of its settings. For a nameless one, it stays as it is."""
    if not database.name:
        return text
    where = iter([" (BATON_DATABASES)"])

    def named(found: re.Match[str]) -> str:
        start = found["start"]
        the = "the" if start is None else "The"
        key = "listen_url" if found["listen"] else "url"
        before = "in " if found["of"] else ""
        return f"{start or ''}{before}{the} {key} of {database.name!r}{next(where, '')}"

    return _SETTING.sub(named, text)


@contextlib.contextmanager
def naming(database: DatabaseEntry) -> Iterator[None]:
    """Raise a `ConfigurationError` again, of the same class, with the names of the database's settings."""
    try:
        yield
    except ConfigurationError as error:
        text = sentence(str(error), database)
        if text == str(error):
            raise
        raise type(error)(text) from error
