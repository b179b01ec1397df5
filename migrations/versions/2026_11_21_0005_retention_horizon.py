"""The horizon of retention: the smallest id of a stream that is kept.

Revision: 0005
Follows: 0004

A new table, which no other session has locked.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

LOCKS: dict[str, str] = {}


def upgrade() -> None:
    op.create_table(
        "retention",
        sa.Column("single", sa.Boolean, server_default=sa.true()),
        sa.Column("expired_before", sa.UUID, nullable=False),
        sa.PrimaryKeyConstraint("single", name="pk_retention"),
        sa.CheckConstraint("single", name=op.f("ck_retention_single")),
        schema="baton",
    )


def downgrade() -> None:
    op.drop_table("retention", schema="baton")
