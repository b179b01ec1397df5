"""API keys: the scopes that each key has on the streams of its tenant.

Revision: 0008
Follows: 0007

A new table, which no other session has locked.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

LOCKS: dict[str, str] = {}

UUIDV7 = (
    "encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) placing "
    "substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6), "
    "52, 1), 53, 1), 'hex')::uuid"
)


def upgrade() -> None:
    timestamp = sa.DateTime(timezone=True)
    op.create_table(
        "api_key",
        sa.Column("id", sa.UUID, server_default=sa.text(UUIDV7)),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("scopes", postgresql.ARRAY(sa.Text), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary, nullable=False),
        sa.Column("created_at", timestamp, nullable=False, server_default=sa.text("clock_timestamp()")),
        sa.Column("expires_at", timestamp),
        sa.Column("revoked_at", timestamp),
        sa.PrimaryKeyConstraint("id", name="pk_api_key"),
        schema="baton",
    )
    op.create_index(
        "uq_api_key_name",
        "api_key",
        ["name"],
        unique=True,
        schema="baton",
        postgresql_where=sa.text("revoked_at IS NULL"),
    )


def downgrade() -> None:
    op.drop_table("api_key", schema="baton")
