"""Keys with which workers sign notifications, so that pods recognize forged ones.

Revision: 0014
Follows: 0013

A new table, which no other session has locked. This revision creates the first key, of 244 random bits. Code of the
release before does not sign, and reads signed notifications like unsigned ones.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

LOCKS: dict[str, str] = {}


def upgrade() -> None:
    op.create_table(
        "notify_key",
        sa.Column("id", sa.Integer, sa.Identity(always=True), nullable=False),
        sa.Column("secret", sa.LargeBinary, nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.text("clock_timestamp()"),
        ),
        sa.PrimaryKeyConstraint("id", name="pk_notify_key"),
        sa.CheckConstraint("octet_length(secret) >= 32", name="ck_notify_key_secret"),
        schema="baton",
    )
    op.execute(
        "INSERT INTO baton.notify_key (secret) VALUES (uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))"
    )


def downgrade() -> None:
    op.drop_table("notify_key", schema="baton")
