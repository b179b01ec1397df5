"""Tables of streams, batches, workers and idempotency keys, a view of single events, and partitions ahead.

Revision: 0001
Follows: -
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

LOCKS: dict[str, str] = {}

UUIDV7 = (
    "encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) placing "
    "substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6), "
    "52, 1), 53, 1), 'hex')::uuid"
)

# One row per event. `data` is json instead of jsonb, and its type is extracted as text, because an event may contain
# "\u0000".
EVENT_VIEW = r"""
CREATE VIEW baton.event AS
SELECT b.stream_id,
       b.first_seq + e.ordinal::integer - 1 AS seq,
       substring(e.line FROM '^\{"type":"([a-z_]+)"') AS type,
       e.line::json AS data
FROM baton.batch AS b
CROSS JOIN LATERAL string_to_table(convert_from(b.events, 'UTF8'), E'\n') WITH ORDINALITY AS e (line, ordinal)
"""

# Ids begin with their creation time in milliseconds, so a range of ids is a day of streams. A partition is created as a
# table and then attached: CREATE … PARTITION OF would lock the parent exclusively.
CREATE_PARTITIONS = """
CREATE FUNCTION baton.create_partitions(days_ahead integer) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    today date := (clock_timestamp() AT TIME ZONE 'UTC')::date;
    day date;
    name text;
    bounds text[];
BEGIN
    IF days_ahead NOT BETWEEN 0 AND 365 THEN
        RAISE EXCEPTION 'days_ahead must lie between 0 and 365, not %', days_ahead;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('baton.create_partitions'));
    FOR day IN SELECT generate_series(today - 1, today + days_ahead, interval '1 day')::date LOOP
        name := 'batch_' || to_char(day, 'YYYYMMDD');
        CONTINUE WHEN to_regclass('baton.' || name) IS NOT NULL;
        SELECT array_agg(rpad(lpad(to_hex((extract(epoch FROM edge) * 1000)::bigint), 12, '0'), 32, '0')::uuid::text)
        INTO bounds FROM unnest(ARRAY[day::timestamp, (day + 1)::timestamp]) AS edge;
        EXECUTE format('CREATE TABLE baton.%I (LIKE baton.batch INCLUDING ALL)', name);
        EXECUTE format('ALTER TABLE baton.batch ATTACH PARTITION baton.%I FOR VALUES FROM (%L) TO (%L)',
                       name, bounds[1], bounds[2]);
        RETURN NEXT name;
    END LOOP;
END
$$
"""


def timestamp(name: str, *, nullable: bool = True, now: bool = False) -> sa.Column[datetime]:
    default = sa.text("clock_timestamp()") if now else None
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=default)


def upgrade() -> None:
    create_stream()
    create_batch()
    create_worker()
    create_idempotency_key()
    op.execute(EVENT_VIEW)
    op.execute(CREATE_PARTITIONS)
    op.execute("REVOKE EXECUTE ON FUNCTION baton.create_partitions(integer) FROM PUBLIC")


def create_stream() -> None:
    op.create_table(
        "stream",
        sa.Column("id", sa.UUID, server_default=sa.text(UUIDV7)),
        sa.Column("tenant", sa.Text, nullable=False, server_default=sa.text("''")),
        sa.Column("generator", sa.Text, nullable=False),
        sa.Column("input", sa.LargeBinary, nullable=False),
        sa.Column("metadata", postgresql.JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("status", sa.Text, nullable=False, server_default=sa.text("'queued'")),
        sa.Column("on_worker_lost", sa.Text, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("worker_id", sa.UUID),
        timestamp("created_at", nullable=False, now=True),
        timestamp("started_at"),
        timestamp("finished_at"),
        timestamp("cancel_requested_at"),
        sa.Column("finish_reason", sa.Text),
        sa.Column("error_code", sa.Text),
        sa.Column("error_message", sa.Text),
        sa.Column("usage", postgresql.JSONB),
        sa.Column("tokens", sa.Integer),
        sa.Column("time_to_first_token_seconds", sa.Double),
        sa.Column("duration_seconds", sa.Double),
        sa.PrimaryKeyConstraint("id", name="pk_stream"),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'completed', 'failed', 'cancelled')", name=op.f("ck_stream_status")
        ),
        sa.CheckConstraint("on_worker_lost IN ('retry', 'fail')", name=op.f("ck_stream_on_worker_lost")),
        schema="baton",
    )
    queued, running = sa.text("status = 'queued'"), sa.text("status = 'running'")
    op.create_index("ix_stream_queued", "stream", ["id"], schema="baton", postgresql_where=queued)
    op.create_index("ix_stream_running", "stream", ["worker_id"], schema="baton", postgresql_where=running)
    op.create_index("ix_stream_tenant_id", "stream", ["tenant", "id"], schema="baton")
    op.create_index(
        "ix_stream_metadata",
        "stream",
        ["metadata"],
        schema="baton",
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
    )


def create_batch() -> None:
    op.create_table(
        "batch",
        sa.Column("stream_id", sa.UUID, nullable=False),
        sa.Column("first_seq", sa.Integer, nullable=False),
        sa.Column("last_seq", sa.Integer, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("terminal", sa.Boolean, nullable=False),
        sa.Column("events", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("stream_id", "first_seq", name="pk_batch"),
        sa.CheckConstraint("first_seq > 0 AND last_seq >= first_seq", name=op.f("ck_batch_seq")),
        schema="baton",
        postgresql_partition_by="RANGE (stream_id)",
    )
    terminal = sa.text("terminal")
    op.create_index("uq_batch_terminal", "batch", ["stream_id"], unique=True, schema="baton", postgresql_where=terminal)


def create_worker() -> None:
    op.create_table(
        "worker",
        sa.Column("id", sa.UUID, server_default=sa.text(UUIDV7)),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("generators", postgresql.ARRAY(sa.Text), nullable=False),
        sa.Column("concurrency", sa.Integer, nullable=False),
        sa.Column("heartbeat", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        timestamp("heartbeat_at", nullable=False, now=True),
        timestamp("started_at", nullable=False, now=True),
        sa.PrimaryKeyConstraint("id", name="pk_worker"),
        schema="baton",
    )


def create_idempotency_key() -> None:
    op.create_table(
        "idempotency_key",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("request_hash", sa.LargeBinary, nullable=False),
        sa.Column("stream_id", sa.UUID, nullable=False),
        timestamp("expires_at", nullable=False),
        sa.PrimaryKeyConstraint("tenant", "key", name="pk_idempotency_key"),
        schema="baton",
    )
    op.create_index("ix_idempotency_key_expires_at", "idempotency_key", ["expires_at"], schema="baton")


def downgrade() -> None:
    op.execute("DROP FUNCTION baton.create_partitions(integer)")
    op.execute("DROP VIEW baton.event")
    for table in ("idempotency_key", "worker", "batch", "stream"):
        op.drop_table(table, schema="baton")
