"""The trace that a stream belongs to, for its worker and for whoever follows it.

Revision: 0011
Follows: 0010

A nullable column without a default, so that no row is rewritten. Its length is bounded by its type and not by a CHECK,
for which Postgres would read the whole table under the lock.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

LOCKS = {"stream": "ACCESS EXCLUSIVE"}


def upgrade() -> None:
    op.add_column("stream", sa.Column("traceparent", sa.String(55)), schema="baton")


def downgrade() -> None:
    op.drop_column("stream", "traceparent", schema="baton")
