"""${message}

Revision: ${up_revision}
Follows: ${down_revision | comma,n}

Rules (follow them, then delete this list):

- Pods and workers of this release and of the one before keep running meanwhile. Make one change per revision: a lock is
  held until the end of the revision.
- Expand, then contract. One release adds a nullable column, a table or an index, and its code uses it. Only a later
  release removes what no running code uses any more, and calls `ddl.require_code`.
- Add a column without NOT NULL, and without a default that is computed for each row. Add a CHECK with `ddl.add_check`
  (NOT VALID), and call `ddl.validate` in the next revision. NOT NULL follows a validated CHECK.
- Build an index on a large table concurrently: on the log with `ddl.create_log_index`, elsewhere with
  `ddl.create_index`. Such a revision does nothing else, and can be repeated.
- Change rows in small batches, and not in a revision.
- Put names of CHECK constraints in `op.f(...)`. Otherwise the naming convention is applied to them again.
- Set no `lock_timeout`: `baton migrate` sets it, and retries.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from baton.schema import ddl
% if imports:
${imports}
% endif

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}

# The strongest lock on each existing table. Partitions of the log and indexes count as their table; ACCESS SHARE is left
# out. `baton migrate` prints it, and a test compares it with pg_locks.
LOCKS: dict[str, str] = {}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
