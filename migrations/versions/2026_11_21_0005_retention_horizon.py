"""Which streams have expired: the smallest id that is kept.

Revision: 0005
Follows: 0002

A new table, which nobody else has locked.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "retention",
        sa.Column("singleton", sa.Boolean, server_default=sa.text("true")),
        sa.Column("expired_before", sa.UUID, nullable=False),
        sa.PrimaryKeyConstraint("singleton", name="pk_retention"),
        sa.CheckConstraint("singleton", name="ck_retention_singleton"),
        schema="baton",
    )


def downgrade() -> None:
    op.drop_table("retention", schema="baton")
