"""Streams that are written over HTTP: their rows, their producers, and the status `open`.

Revision: 0022
Follows: 0021

Two new tables, and a new column of `worker` and `pod`. The CHECK of `stream.status` is replaced by one that is not
validated yet, so no row is read. Code before this revision takes `open` for the status of an ended stream. So the first
such stream is created only once no such code runs any more, and from then on none can start
(`baton.raise_oldest_code`).
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from baton.schema import ddl

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

LOCKS = {"stream": "ACCESS EXCLUSIVE", "worker": "ACCESS EXCLUSIVE", "pod": "ACCESS EXCLUSIVE"}

# Returns whether only code from `wanted` on works with this schema: no older code is registered, and none can start any
# more. A pod that died leaves its row for a while, so rows that were not written for a minute do not count.
RAISE_OLDEST_CODE = """
CREATE FUNCTION baton.raise_oldest_code(wanted text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (SELECT oldest_code FROM baton.compatibility) >= wanted THEN
        RETURN true;
    END IF;
    IF wanted > (SELECT version_num FROM baton.alembic_version)
       OR EXISTS (SELECT FROM baton.worker WHERE coalesce(code, '') < wanted)
       OR EXISTS (SELECT FROM baton.pod
                  WHERE coalesce(code, '') < wanted AND noted_at > clock_timestamp() - interval '1 minute') THEN
        RETURN false;
    END IF;
    UPDATE baton.compatibility SET oldest_code = wanted WHERE oldest_code < wanted;
    RETURN true;
END
$$
"""


def upgrade() -> None:
    op.create_table(
        "external_stream",
        sa.Column("stream_id", sa.UUID, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("path", sa.Text),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("content_type", sa.Text, nullable=False),
        sa.Column("ttl_seconds", sa.BIGINT),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()")),
        sa.Column("tail", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("size_bytes", sa.BIGINT, nullable=False, server_default=sa.text("0")),
        sa.Column("tokens", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("first_token_at", sa.DateTime(timezone=True)),
        sa.Column("heard_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()")),
        sa.Column("stream_seq", sa.Text),
        sa.Column("producers", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("closed", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.PrimaryKeyConstraint("stream_id", name="pk_external_stream"),
        sa.UniqueConstraint("tenant", "path", name="uq_external_stream_tenant_path"),
        sa.CheckConstraint("kind IN ('events', 'json', 'text', 'bytes')", name="ck_external_stream_kind"),
        schema="baton",
    )
    op.create_index(
        "ix_external_stream_open",
        "external_stream",
        ["stream_id"],
        schema="baton",
        postgresql_where=sa.text("NOT closed"),
    )
    op.create_table(
        "producer",
        sa.Column("stream_id", sa.UUID, nullable=False),
        sa.Column("producer_id", sa.Text, nullable=False),
        sa.Column("epoch", sa.BIGINT, nullable=False),
        sa.Column("last_seq", sa.BIGINT, nullable=False),
        sa.PrimaryKeyConstraint("stream_id", "producer_id", name="pk_producer"),
        schema="baton",
    )
    # Both are updated by each append, in place.
    for table in ("external_stream", "producer"):
        op.execute(
            f"ALTER TABLE baton.{table} SET (fillfactor = 50, autovacuum_vacuum_threshold = 1000, "
            "autovacuum_vacuum_scale_factor = 0.02)"
        )
    # The revision that the code of a worker or a pod works with; NULL before this one.
    op.add_column("worker", sa.Column("code", sa.Text), schema="baton")
    op.add_column("pod", sa.Column("code", sa.Text), schema="baton")
    op.execute(RAISE_OLDEST_CODE)
    # The constraint that replaces it, in the same transaction, allows one value more.
    op.execute("-- squawk-ignore ban-drop-constraint\nALTER TABLE baton.stream DROP CONSTRAINT ck_stream_status")
    ddl.add_check(
        "stream", "ck_stream_status", "status IN ('queued', 'running', 'open', 'completed', 'failed', 'cancelled')"
    )


def downgrade() -> None:
    op.execute("ALTER TABLE baton.stream DROP CONSTRAINT ck_stream_status")
    ddl.add_check("stream", "ck_stream_status", "status IN ('queued', 'running', 'completed', 'failed', 'cancelled')")
    ddl.validate("stream", "ck_stream_status")
    op.execute("DROP FUNCTION baton.raise_oldest_code(text)")
    op.drop_column("pod", "code", schema="baton")
    op.drop_column("worker", "code", schema="baton")
    op.drop_table("producer", schema="baton")
    op.drop_table("external_stream", schema="baton")
