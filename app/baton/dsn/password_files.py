r"""Password files (`.pgpass`), as libpq reads them: lines of `host:port:database:user:password`.

In a field, `:` and `\` are escaped by a `\` before them.
"""

from __future__ import annotations

import logging
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

_FIELD: Final = r"((?:\\.|[^\\:])*)"
_LINE: Final = re.compile(":".join([_FIELD] * 4) + r":(.*)")
_BACKSLASH: Final = re.compile(r"\\(.)")


def password_for(path: Path, hosts: Sequence[tuple[str, int]], database: str, user: str) -> str | None:
    """Return the password of the first line that matches one of these servers, in their order; None if none does.

    As in libpq, a file that others may read is ignored.
    """
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            logger.warning("The password file %s is ignored, since others may read it. Run: chmod 600", path)
            return None
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    entries = [tuple(map(_plain, match.groups())) for line in lines if line[:1] != "#" and (match := _LINE.match(line))]
    for host, port in hosts:
        # A socket has no name except its folder. libpq calls the default one localhost.
        names = {host, "localhost"} if host.startswith("/") else {host}
        for entry_host, entry_port, entry_database, entry_user, password in entries:
            if (
                entry_host in names | {"*"}
                and entry_port in {str(port), "*"}
                and entry_database in {database, "*"}
                and entry_user in {user, "*"}
            ):
                return password
    return None


def _plain(text: str) -> str:
    return _BACKSLASH.sub(r"\1", text)
