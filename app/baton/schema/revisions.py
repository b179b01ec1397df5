"""The revisions of the schema: the title of each, the locks it takes, and which ones a database is missing.

Each revision is a module in `migrations/versions`. The first line of its docstring is its title. Its `LOCKS` names the
existing tables that it locks, and the mode; a test compares that with pg_locks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection as SyncConnection

from ..errors import ConfigurationError

# What each lock does to other sessions, strongest first. ACCESS SHARE, the lock of a plain read, is never listed.
LOCK_MODES: Final = {
    "ACCESS EXCLUSIVE": "blocks reads and writes while it is held",
    "EXCLUSIVE": "blocks writes while it is held",
    "SHARE ROW EXCLUSIVE": "blocks writes while it is held",
    "SHARE": "blocks writes while it is held",
    "SHARE UPDATE EXCLUSIVE": "reads and writes continue",
    "ROW EXCLUSIVE": "reads and writes continue",
    "ROW SHARE": "reads and writes continue",
}


@dataclass(frozen=True, slots=True)
class Revision:
    """One step of the schema. `locks` names tables without their schema; the log's partitions count as `batch`."""

    id: str
    title: str
    locks: Mapping[str, str]

    def describe_locks(self) -> str:
        """Return, as a verb phrase, which locks it takes on existing tables."""
        if not self.locks:
            return "takes no lock on existing tables"
        each = [f"{mode} on {table} ({LOCK_MODES[mode]})" for table, mode in self.locks.items()]
        return "takes " + " and ".join(each)


class RevisionHistory:
    """All revisions of one folder, oldest first."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or migrations_folder()
        scripts = ScriptDirectory.from_config(self.config()).walk_revisions()
        self.revisions = [
            Revision(script.revision, script.doc, dict(script.module.LOCKS)) for script in reversed(list(scripts))
        ]

    @property
    def ids(self) -> list[str]:
        """The numbers of the revisions, oldest first."""
        return [revision.id for revision in self.revisions]

    def config(self) -> Config:
        """Return Alembic's configuration for this folder."""
        config = Config()
        config.set_main_option("script_location", str(self._folder).replace("%", "%%"))
        return config

    def between(self, start: str | None, end: str | None) -> list[Revision]:
        """Return the revisions after `start` (None: an empty database) up to `end` (None: the newest).

        Raises:
            ConfigurationError: a revision does not exist, `end` is older than `start`, or `start` is newer than all.
        """
        if start is not None and start > self.ids[-1]:
            raise ConfigurationError(
                f"The schema is at revision {start}, newer than this version of Baton, which knows revisions up to "
                f"{self.ids[-1]}. Use the version of Baton that made this schema."
            )
        first = 0 if start is None else self._index(start) + 1
        last = len(self.revisions) if end is None else self._index(end) + 1
        if last < first:
            raise ConfigurationError(
                f"Revision {end} is older than {start}, and `baton migrate` does not downgrade. Name a newer revision."
            )
        return self.revisions[first:last]

    def before(self, revision: Revision) -> str | None:
        """Return the number of the revision before; None for the first."""
        index = self._index(revision.id)
        return self.ids[index - 1] if index else None

    def upgrade(self, connection: SyncConnection, revision: str = "head") -> None:
        """Run Alembic's upgrade to `revision` on a connection."""
        config = self.config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    def _index(self, revision: str) -> int:
        if revision not in self.ids:
            raise ConfigurationError(
                f"Revision {revision!r} does not exist. Use one from {self.ids[0]} to {self.ids[-1]}."
            )
        return self.ids.index(revision)


def migrations_folder() -> Path:
    """Return the folder of the migrations: inside the installed package, or at the top of a checkout.

    Raises:
        ConfigurationError: it is in neither place.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "migrations", package.parent.parent / "migrations"):
        if (folder / "env.py").exists():
            return folder
    raise ConfigurationError("This installation of Baton has no migrations. Install Baton again.")
