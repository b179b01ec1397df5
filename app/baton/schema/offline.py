"""The migrations as SQL for psql: to be read before they run, or to be run where `baton migrate` may not.

The script can be run again: it skips the revisions that are done, and one that could not get its locks was undone.
"""

from __future__ import annotations

import io

from alembic import command

from ..db import partitions
from ..db.postgres import MIGRATION_LOCK
from .patience import Patience
from .revisions import History, Revision

_HEAD = """\
-- Baton's schema, {what}. Run it by `psql -f`, in a session of its own: it has commands of psql's own.
-- It stops at the first error, as when it waits for a lock for too long. Run it again in a new session: it skips what
-- is done. In the same session, by \\i, it would need a ROLLBACK before.
\\set ON_ERROR_STOP on
SET lock_timeout = '{milliseconds}ms';
SET statement_timeout = 0;
SET client_min_messages = warning;
DO $$ BEGIN
    IF NOT pg_try_advisory_lock({advisory_lock}) THEN
        RAISE EXCEPTION 'Another `baton migrate` or `baton maintain` is at work. Run this again when it has ended.';
    END IF;
END $$;
"""

_SCHEMA = """
SELECT to_regnamespace('baton') IS NULL AS baton_runs \\gset
\\if :baton_runs
CREATE SCHEMA baton;
\\endif
"""

_FRESH = "SELECT to_regclass('baton.alembic_version') IS NULL AS baton_runs \\gset"
_AT = "SELECT EXISTS (SELECT FROM baton.alembic_version WHERE version_num = '{before}') AS baton_runs \\gset"

_REVISION = """
-- Revision {id}: {title}
-- It {locks}.
{condition}
\\if :baton_runs
{sql}
\\echo 'Revision {id} is done.'
\\else
\\echo 'Revision {id} is skipped.'
\\endif
"""

_TAIL = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM baton.alembic_version WHERE version_num >= '{last}') THEN
        RAISE EXCEPTION 'The schema is not at revision {last}: this script does not begin where the database is.';
    END IF;
END $$;

{partitions}
SELECT pg_advisory_unlock({advisory_lock}) AS "done";
"""


def script(
    *,
    start: str | None,
    to: str | None,
    days_ahead: int,
    patience: Patience | None = None,
    history: History | None = None,
) -> str:
    """Return what leads from revision `start` (None: an empty database) to `to` (None: the newest).

    Raises:
        ConfigurationError: there is no such revision, or `to` lies behind `start`.
    """
    patience, history = patience or Patience(), history or History()
    revisions = history.between(start, to)
    last = revisions[-1].id if revisions else start
    head = _HEAD.format(
        what=f"from revision {start} to {last}" if start else f"from nothing to revision {last}",
        milliseconds=patience.lock_timeout_milliseconds,
        advisory_lock=MIGRATION_LOCK,
    )
    created = "\n".join(
        f'SELECT baton.create_partitions({days}) AS "partitions created";' for days in partitions.steps(days_ahead)
    )
    tail = _TAIL.format(last=last, partitions=created, advisory_lock=MIGRATION_LOCK)
    parts = [_part(history, revision) for revision in revisions]
    return "".join([head, "" if start else _SCHEMA, *parts, tail])


def revision_sql(history: History, revision: Revision) -> str:
    """Return the SQL of one revision, as Alembic writes it."""
    config = history.config()
    config.output_buffer = io.StringIO()
    command.upgrade(config, f"{history.before(revision) or 'base'}:{revision.id}", sql=True)
    return config.output_buffer.getvalue().strip()


def _part(history: History, revision: Revision) -> str:
    before = history.before(revision)
    return _REVISION.format(
        id=revision.id,
        title=revision.title,
        locks=revision.describe_locks(),
        condition=_AT.format(before=before) if before else _FRESH,
        sql=revision_sql(history, revision),
    )
