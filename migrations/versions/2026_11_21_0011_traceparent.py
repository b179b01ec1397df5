"""The trace that a stream belongs to, for its worker and its followers.

Revision: 0011
Follows: 0010

A nullable column without a default, so no row is rewritten. Its type bounds its length, because Postgres would read the
whole table under the lock for a CHECK.
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
