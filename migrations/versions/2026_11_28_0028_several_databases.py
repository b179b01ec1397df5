"""The number of the database in the ids of its streams, and the lists of the databases that share new streams.

Revision: 0028
Follows: 0027

A database has the number 0 until `baton migrate` gives it another one, which it can only before the first stream.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from baton.schema import enqueue
from baton.schema.tables import NEW_STREAM_ID, NEW_STREAM_ID_DEFINITION, UUIDV7

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None

LOCKS = {"stream": "ACCESS EXCLUSIVE"}


def upgrade() -> None:
    op.create_table(
        "database_identity",
        sa.Column("single", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("installation", sa.UUID, nullable=False, server_default=sa.text("gen_random_uuid()")),
        sa.Column("number", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.PrimaryKeyConstraint("single", name="pk_database_identity"),
        sa.CheckConstraint("single", name="ck_database_identity_single"),
        sa.CheckConstraint("number BETWEEN 0 AND 4095", name="ck_database_identity_number"),
        schema="baton",
    )
    op.execute("INSERT INTO baton.database_identity DEFAULT VALUES")
    op.create_table(
        "placement",
        sa.Column("id", sa.UUID, nullable=False),
        sa.Column("weights", JSONB, nullable=False),
        sa.Column("effective_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_placement"),
        schema="baton",
    )
    op.execute(NEW_STREAM_ID_DEFINITION)
    op.execute(enqueue.definition(NEW_STREAM_ID))
    op.alter_column("stream", "id", server_default=sa.text(NEW_STREAM_ID), schema="baton")


def downgrade() -> None:
    op.alter_column("stream", "id", server_default=sa.text(UUIDV7), schema="baton")
    op.execute(enqueue.definition(UUIDV7))
    op.execute("DROP FUNCTION baton.new_stream_id()")
    op.drop_table("placement", schema="baton")
    op.drop_table("database_identity", schema="baton")
