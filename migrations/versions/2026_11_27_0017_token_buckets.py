"""Token buckets whose key leads to their newest version.

Revision: 0017
Follows: 0016

A new table, which no other session has locked. It is UNLOGGED, because its content may be lost. Its pages leave room
for new versions of rows (HOT). `bucket` stays for the release before, which counts separately.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

LOCKS: dict[str, str] = {}


def upgrade() -> None:
    op.create_table(
        "token_bucket",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("slot", sa.BigInteger, nullable=False),
        sa.Column("full_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "caller", "slot", name="pk_token_bucket"),
        schema="baton",
        prefixes=["UNLOGGED"],
    )
    op.execute("ALTER TABLE baton.token_bucket SET (fillfactor = 50)")


def downgrade() -> None:
    op.drop_table("token_bucket", schema="baton")
