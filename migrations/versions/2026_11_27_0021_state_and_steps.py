"""What a stream needs to survive its worker: states, results of steps, and calls that stop a provider.

Revision: 0021
Follows: 0020

Five new columns of `stream` that are nullable or have constant defaults, so no row is rewritten, and three new tables.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

LOCKS = {"stream": "ACCESS EXCLUSIVE"}


def upgrade() -> None:
    for name in ("may_continue", "continues"):
        op.add_column("stream", sa.Column(name, sa.Boolean, nullable=False, server_default=sa.false()), schema="baton")
    op.add_column("stream", sa.Column("run", sa.Integer, nullable=False, server_default=sa.text("0")), schema="baton")
    op.add_column("stream", sa.Column("interruption", sa.Text), schema="baton")
    op.add_column("stream", sa.Column("answered_by", postgresql.JSONB), schema="baton")
    op.create_table(
        "stream_state",
        sa.Column("stream_id", postgresql.UUID, nullable=False),
        sa.Column("after_seq", sa.Integer, nullable=False),
        sa.Column("state", sa.LargeBinary, nullable=False),
        sa.Column("stop_with", sa.Text),
        sa.PrimaryKeyConstraint("stream_id", "after_seq", name="pk_stream_state"),
        schema="baton",
    )
    op.create_table(
        "step",
        sa.Column("stream_id", postgresql.UUID, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("occurrence", sa.Integer, nullable=False),
        sa.Column("result", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("stream_id", "name", "digest", "occurrence", name="pk_step"),
        schema="baton",
    )
    op.create_table(
        "stop_call",
        sa.Column("stream_id", postgresql.UUID, nullable=False),
        sa.Column("generator", sa.Text, nullable=False),
        sa.Column("state", sa.LargeBinary, nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()")
        ),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()")),
        sa.Column("tries", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.PrimaryKeyConstraint("stream_id", name="pk_stop_call"),
        schema="baton",
    )


def downgrade() -> None:
    for table in ("stop_call", "step", "stream_state"):
        op.drop_table(table, schema="baton")
    for name in ("answered_by", "interruption", "run", "continues", "may_continue"):
        op.drop_column("stream", name, schema="baton")
