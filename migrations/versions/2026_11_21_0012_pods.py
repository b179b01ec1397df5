"""A row for each pod, which the pod rewrites at each heartbeat: its state and its counts.

Revision: 0012
Follows: 0011

A new table, which no other session has locked. It is UNLOGGED, because a live pod rewrites its row within seconds. Its
pages leave room for new versions of rows (HOT).
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

LOCKS: dict[str, str] = {}


def upgrade() -> None:
    timestamp = sa.DateTime(timezone=True)
    op.create_table(
        "pod",
        sa.Column("id", sa.UUID, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("started_at", timestamp, nullable=False, server_default=sa.text("clock_timestamp()")),
        sa.Column("noted_at", timestamp, nullable=False, server_default=sa.text("clock_timestamp()")),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("listener", sa.Text, nullable=False),
        sa.Column("subscribers", sa.Integer, nullable=False),
        sa.Column("connections", sa.Integer, nullable=False),
        sa.Column("deliveries", postgresql.ARRAY(sa.BIGINT), nullable=False),
        sa.Column("watched", postgresql.ARRAY(sa.UUID), nullable=False),
        sa.Column("viewers", postgresql.ARRAY(sa.Integer), nullable=False),
        sa.Column("watched_from", sa.UUID),
        sa.PrimaryKeyConstraint("id", name="pk_pod"),
        schema="baton",
        prefixes=["UNLOGGED"],
    )
    op.execute("ALTER TABLE baton.pod SET (fillfactor = 50)")


def downgrade() -> None:
    op.drop_table("pod", schema="baton")
