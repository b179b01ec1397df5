"""Limits of a stream: how long it may wait, run, be silent, and be unwatched.

Revision: 0002
Follows: 0001

The new columns are nullable and have no default for existing rows, so no row is rewritten. The default of `queued_at`
is set in a second step, for new rows only.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

LOCKS = {"stream": "ACCESS EXCLUSIVE"}

COLUMNS = ("max_duration", "idle_timeout", "queue_timeout", "unwatched_timeout")


def upgrade() -> None:
    for name in COLUMNS:
        op.add_column("stream", sa.Column(name, sa.Double), schema="baton")
    for name in ("queued_at", "watched_at"):
        op.add_column("stream", sa.Column(name, sa.DateTime(timezone=True)), schema="baton")
    op.alter_column("stream", "queued_at", server_default=sa.text("clock_timestamp()"), schema="baton")


def downgrade() -> None:
    for name in ("watched_at", "queued_at", *reversed(COLUMNS)):
        op.drop_column("stream", name, schema="baton")
