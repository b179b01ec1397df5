"""The migrations as SQL for psql, to review them first or to run them where `baton migrate` may not run.

The script can be run again: it skips finished revisions, and a revision that did not get its locks was rolled back.
"""

from __future__ import annotations

import io

from alembic import command

from ..db import partitions
from ..db.postgres import MIGRATION_LOCK
from .lock_timeouts import LockTimeouts
from .revisions import Revision, RevisionHistory

_HEAD = """\
-- Baton's schema, {what}. Run it with `psql -f`, in a session of its own: it contains psql commands.
-- It stops at the first error, such as a lock timeout. Then run it again in a new session: it skips finished revisions.
-- To repeat it in the same session, with \\i, run ROLLBACK first.
\\set ON_ERROR_STOP on
SET lock_timeout = '{milliseconds}ms';
SET statement_timeout = 0;
SET client_min_messages = warning;
DO $$ BEGIN
    IF NOT pg_try_advisory_lock({advisory_lock}) THEN
        RAISE EXCEPTION 'Another `baton migrate` or `baton maintain` is running. Run this again when it has ended.';
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
\\echo 'Revision {id} is already done: skipped.'
\\endif
"""

_TAIL = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM baton.alembic_version WHERE version_num >= '{last}') THEN
        RAISE EXCEPTION 'The schema is not at revision {last}: this script starts at another revision.';
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
    timeouts: LockTimeouts | None = None,
    history: RevisionHistory | None = None,
) -> str:
    """Return the SQL from revision `start` (None: an empty database) to `to` (None: the newest).

    Raises:
        ConfigurationError: a revision does not exist, or `to` is older than `start`.
    """
    timeouts, history = timeouts or LockTimeouts(), history or RevisionHistory()
    revisions = history.between(start, to)
    last = revisions[-1].id if revisions else start
    head = _HEAD.format(
        what=f"from revision {start} to {last}" if start else f"from an empty database to revision {last}",
        milliseconds=timeouts.lock_timeout_milliseconds,
        advisory_lock=MIGRATION_LOCK,
    )
    created = "\n".join(
        f'SELECT baton.create_partitions({days}) AS "partitions created";' for days in partitions.steps(days_ahead)
    )
    tail = _TAIL.format(last=last, partitions=created, advisory_lock=MIGRATION_LOCK)
    sections = [_section(history, revision) for revision in revisions]
    return "".join([head, "" if start else _SCHEMA, *sections, tail])


def revision_sql(history: RevisionHistory, revision: Revision) -> str:
    """Return the SQL of one revision, as Alembic generates it."""
    config = history.config()
    config.output_buffer = io.StringIO()
    command.upgrade(config, f"{history.before(revision) or 'base'}:{revision.id}", sql=True)
    return config.output_buffer.getvalue().strip()


def _section(history: RevisionHistory, revision: Revision) -> str:
    before = history.before(revision)
    return _REVISION.format(
        id=revision.id,
        title=revision.title,
        locks=revision.describe_locks(),
        condition=_AT.format(before=before) if before else _FRESH,
        sql=revision_sql(history, revision),
    )
