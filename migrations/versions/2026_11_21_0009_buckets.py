"""Token buckets, with which all pods together limit how fast a caller creates streams.

Revision: 0009
Follows: 0008

A new table, which no other session has locked. It is UNLOGGED, because its content may be lost. Its pages leave room
for new versions of rows, which are updated often (HOT).
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

LOCKS: dict[str, str] = {}


def upgrade() -> None:
    op.create_table(
        "bucket",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("full_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "caller", name="pk_bucket"),
        schema="baton",
        prefixes=["UNLOGGED"],
    )
    op.execute("ALTER TABLE baton.bucket SET (fillfactor = 50)")


def downgrade() -> None:
    op.drop_table("bucket", schema="baton")
