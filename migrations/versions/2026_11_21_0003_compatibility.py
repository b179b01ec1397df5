"""The oldest code that works with this schema, so that the release before can still start during a roll-out.

Revision: 0003
Follows: 0002

Only a revision that removes what older code needs raises its one row (`ddl.require_code`).
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

LOCKS: dict[str, str] = {}


def upgrade() -> None:
    op.create_table(
        "compatibility",
        # The table has one row: the key has one value.
        sa.Column("single", sa.Boolean, server_default=sa.true()),
        sa.Column("oldest_code", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("single", name="pk_compatibility"),
        sa.CheckConstraint("single", name=op.f("ck_compatibility_single")),
        schema="baton",
    )
    op.execute("INSERT INTO baton.compatibility (oldest_code) VALUES ('0002')")


def downgrade() -> None:
    op.drop_table("compatibility", schema="baton")
