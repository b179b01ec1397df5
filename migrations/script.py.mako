"""${message}

Revision: ${up_revision}
Follows: ${down_revision | comma,n}

Rules, to be deleted when they are kept:

- It runs while pods and workers of this release and of the one before go on. One change in one revision: a lock is held
  until the revision's end.
- Expand, then contract. A release adds (a nullable column, a table, an index); code learns to use it; only a release
  after that takes away what no running code uses any more, and calls `ddl.require_code`.
- A column is added without a default that has to be computed for each row, and without NOT NULL. A condition is added
  by `ddl.add_check` (NOT VALID), and the next revision calls `ddl.validate`. NOT NULL follows a validated CHECK.
- An index on a table with many rows is built concurrently: on the log by `ddl.create_log_index`, elsewhere
  by `ddl.create_index`. Such a revision does nothing else, and can be repeated.
- Rows are changed in small parts, and not here.
- Names of CHECK constraints stand in `op.f(...)`: else the naming convention is applied to them once more.
- No `lock_timeout` here: `baton migrate` sets it, and tries again.
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

# The strongest lock on each table that was there before, the log's partitions and indexes counted as their table;
# ACCESS SHARE goes without saying. `baton migrate` tells it, and a test compares it with pg_locks.
LOCKS: dict[str, str] = {}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
