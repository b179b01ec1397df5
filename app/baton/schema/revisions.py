"""The revisions of the schema: what each one is called, which locks it takes, and which a database is missing.

Each revision is a module in `migrations/versions`. Its docstring's first line is its title, and its `LOCKS` says which
table that was there before is locked and how: a test holds that against what Postgres says.
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

# What a lock does to everybody else, from the strongest; reading alone (ACCESS SHARE) is not worth a word.
LOCK_MODES: Final = {
    "ACCESS EXCLUSIVE": "nobody reads or writes while it is held",
    "EXCLUSIVE": "nobody writes while it is held",
    "SHARE ROW EXCLUSIVE": "nobody writes while it is held",
    "SHARE": "nobody writes while it is held",
    "SHARE UPDATE EXCLUSIVE": "reads and writes go on",
    "ROW EXCLUSIVE": "reads and writes go on",
    "ROW SHARE": "reads and writes go on",
}


@dataclass(frozen=True, slots=True)
class Revision:
    """One step of the schema. `locks` names tables without their schema; the log's partitions count as `batch`."""

    id: str
    title: str
    locks: Mapping[str, str]

    def describe_locks(self) -> str:
        """Say in a line which locks it takes on tables that were there before."""
        if not self.locks:
            return "takes no lock on existing tables"
        each = [f"{mode} on {table} ({LOCK_MODES[mode]})" for table, mode in self.locks.items()]
        return "takes " + " and ".join(each)


class History:
    """All revisions of one folder, the oldest first."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or migrations_folder()
        scripts = ScriptDirectory.from_config(self.config()).walk_revisions()
        self.revisions = [
            Revision(script.revision, script.doc, dict(script.module.LOCKS)) for script in reversed(list(scripts))
        ]

    @property
    def ids(self) -> list[str]:
        """The revisions' numbers."""
        return [revision.id for revision in self.revisions]

    def config(self) -> Config:
        """Alembic's configuration for this folder."""
        config = Config()
        config.set_main_option("script_location", str(self._folder).replace("%", "%%"))
        return config

    def between(self, start: str | None, end: str | None) -> list[Revision]:
        """Return what leads from revision `start` (None: an empty database) to `end` (None: the newest).

        Raises:
            ConfigurationError: there is no such revision, it lies behind `start`, or `start` is newer than all of them.
        """
        if start is not None and start > self.ids[-1]:
            raise ConfigurationError(
                f"The schema is at revision {start}, newer than this version of Baton, which knows those up to "
                f"{self.ids[-1]}: it has nothing to migrate there. Use the version that the schema is of."
            )
        first = 0 if start is None else self._place(start) + 1
        last = len(self.revisions) if end is None else self._place(end) + 1
        if last < first:
            raise ConfigurationError(
                f"Revision {end} is older than {start}, where the database is, and `baton migrate` does not go back."
            )
        return self.revisions[first:last]

    def before(self, revision: Revision) -> str | None:
        """Return the number of the revision that comes before."""
        place = self._place(revision.id)
        return self.ids[place - 1] if place else None

    def upgrade(self, connection: SyncConnection, revision: str = "head") -> None:
        """Run Alembic's upgrade to `revision`."""
        config = self.config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    def _place(self, revision: str) -> int:
        if revision not in self.ids:
            raise ConfigurationError(
                f"There is no revision {revision!r}; they go from {self.ids[0]} to {self.ids[-1]}."
            )
        return self.ids.index(revision)


def migrations_folder() -> Path:
    """Where the migrations are: inside the installed package, or at the top of a checkout.

    Raises:
        ConfigurationError: they are in neither place.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "migrations", package.parent.parent / "migrations"):
        if (folder / "env.py").exists():
            return folder
    raise ConfigurationError("The migrations did not come with this installation of Baton. Install it again.")
