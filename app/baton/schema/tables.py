"""The tables, in a Postgres schema of their own called `baton`.

They are declared with SQLAlchemy for Alembic alone. The modules that own a table use SQL: `db.event_log`, `db.streams`,
`db.worker_rows`, `db.pod_rows`, `db.retention`, `auth.keys` and others.
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY, BIGINT, JSONB, UUID

SCHEMA = "baton"

# A UUIDv7 on the database's clock, on every Postgres since 13: 48 bits of milliseconds over a random UUIDv4, whose
# version bits 0100 two set_bit calls turn into 0111.
UUIDV7 = (
    "encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) placing "
    "substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6), "
    "52, 1), 53, 1), 'hex')::uuid"
)

# The id of a new stream, with the number of the database in it (see `stream_ids`). It runs with the owner's rights, so
# that roles whose grants are older than the table can create streams.
NEW_STREAM_ID = "baton.new_stream_id()"
NEW_STREAM_ID_DEFINITION = f"""
CREATE FUNCTION {NEW_STREAM_ID} RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    own constant integer := (SELECT number FROM baton.database_identity);
BEGIN
    IF own = 0 THEN
        RETURN {UUIDV7};
    END IF;
    -- A UUIDv8: milliseconds, the version and the number in two bytes, and random bits.
    RETURN encode(overlay(overlay(uuid_send(gen_random_uuid()) placing
        substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6) placing
        substring(int4send(32768 + own) FROM 3) FROM 7 FOR 2), 'hex')::uuid;
END
$$
"""  # noqa: S608

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    },
)

_Timestamp = DateTime(timezone=True)

stream = Table(
    "stream",
    metadata,
    Column("id", UUID, primary_key=True, server_default=text(NEW_STREAM_ID)),
    Column("tenant", Text, nullable=False, server_default=text("''")),
    Column("generator", Text, nullable=False),
    # JSON as bytes: jsonb rejects "\u0000", and users paste anything.
    Column("input", LargeBinary, nullable=False),
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'")),
    Column("status", Text, nullable=False, server_default=text("'queued'")),
    Column("on_worker_lost", Text, nullable=False),
    Column("epoch", Integer, nullable=False, server_default=text("0")),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("worker_id", UUID),
    Column("created_at", _Timestamp, nullable=False, server_default=text("clock_timestamp()")),
    Column("queued_at", _Timestamp, server_default=text("clock_timestamp()")),
    Column("started_at", _Timestamp),
    Column("finished_at", _Timestamp),
    Column("cancel_requested_at", _Timestamp),
    # In seconds. NULL: the setting of the worker that runs the stream applies.
    Column("max_duration", Double),
    Column("idle_timeout", Double),
    Column("queue_timeout", Double),
    Column("unwatched_timeout", Double),
    Column("watched_at", _Timestamp),
    Column("finish_reason", Text),
    Column("error_code", Text),
    Column("error_message", Text),
    Column("usage", JSONB),
    Column("tokens", Integer),
    Column("time_to_first_token_seconds", Double),
    Column("duration_seconds", Double),
    # The span that created the stream (W3C Trace Context), in its fixed length.
    Column("traceparent", String(55)),
    # The history of the database in which it was created, or to which its worker moved it (see `db.history`).
    Column("history", Text, server_default=text("baton.current_history()")),
    # The claim that may write to it, together with the epoch (see `db.event_log`).
    Column("claim_token", UUID),
    # What it continues, as JSON: see `db.stream_creation.NewStream`.
    Column("continuation", LargeBinary),
    # The usage of each attempt, if several used something; `usage` is the sum.
    Column("usage_by_attempt", JSONB),
    # Whether a new worker may continue it, as its creator wanted; `on_worker_lost` says what happens otherwise.
    Column("may_continue", Boolean, nullable=False, server_default=false()),
    # Whether the generator of the last claim can continue it, and `may_continue`.
    Column("continues", Boolean, nullable=False, server_default=false()),
    Column("run", Integer, nullable=False, server_default=text("0")),  # how often a worker has started it
    Column("interruption", Text),  # why its last worker gave it back or lost it
    # The model and the provider that answered, as JSON.
    Column("answered_by", JSONB),
    Column("inputs", Integer, nullable=False, server_default=text("0")),  # how many it has got (see `db.inputs`)
    # Its place among the queued streams. NULL: it is held until `held_until` (see `db.stream_admission`), which is also
    # when a wait ends.
    Column("queue_position", _Timestamp, server_default=text("clock_timestamp()")),
    Column("held_until", _Timestamp),
    Column("start_after", _Timestamp),  # as its creator wanted
    Column("priority", Integer, nullable=False, server_default=text("0")),
    # The wait in progress, or the last one (see `db.stream_waiting`).
    Column("waiting_since", _Timestamp),
    Column("wait_until", _Timestamp),
    Column("wait_ends", Boolean, nullable=False, server_default=false()),  # the stream ends then, and is not woken
    Column("waited_seconds", Double, nullable=False, server_default=text("0")),  # in waits that are over
    Column("webhook", Text),  # the URL that is called when it has ended
    Column("hook_failed", Boolean, nullable=False, server_default=false()),  # it ended without its end hook
    CheckConstraint(
        "status IN ('queued', 'running', 'waiting', 'open', 'completed', 'failed', 'cancelled')", name="status"
    ),
    CheckConstraint("priority BETWEEN -1 AND 1", name="priority"),
    CheckConstraint("on_worker_lost IN ('retry', 'fail')", name="on_worker_lost"),
    Index(
        "ix_stream_in_line",
        "queue_position",
        "id",
        postgresql_where=text("status = 'queued' AND queue_position IS NOT NULL"),
    ),
    Index(
        "ix_stream_tenant_line",
        "tenant",
        "priority",
        "queue_position",
        postgresql_where=text("status = 'queued' AND queue_position IS NOT NULL"),
    ),
    # Held streams, and streams that wait.
    Index(
        "ix_stream_held",
        "held_until",
        "tenant",
        "id",
        postgresql_where=text("status = 'waiting' OR (status = 'queued' AND queue_position IS NULL)"),
    ),
    Index("ix_stream_hook_failed", "id", postgresql_where=text("hook_failed")),
    Index("ix_stream_running", "worker_id", postgresql_where=text("status = 'running'")),
    Index("ix_stream_tenant_id", "tenant", "id"),
    Index(
        "ix_stream_not_ended",
        "tenant",
        "id",
        postgresql_where=text("status NOT IN ('completed', 'failed', 'cancelled')"),
    ),
    Index(
        "ix_stream_metadata",
        "metadata",
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
    ),
)

batch = Table(
    "batch",
    metadata,
    Column("stream_id", UUID, nullable=False),
    Column("first_seq", Integer, nullable=False),
    Column("last_seq", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("terminal", Boolean, nullable=False),
    Column("events", LargeBinary, nullable=False),
    PrimaryKeyConstraint("stream_id", "first_seq"),
    CheckConstraint("first_seq > 0 AND last_seq >= first_seq", name="seq"),
    Index("uq_batch_terminal", "stream_id", unique=True, postgresql_where=text("terminal")),
    postgresql_partition_by="RANGE (stream_id)",
)

# The last state that each running stream's generator saved (see `db.stream_states`).
stream_state = Table(
    "stream_state",
    metadata,
    Column("stream_id", UUID, nullable=False),
    Column("after_seq", Integer, nullable=False),  # the number of the last event that it covers
    Column("state", LargeBinary, nullable=False),  # JSON
    # The generator whose `stop` is called with the state if the stream ends early; NULL if none is.
    Column("stop_with", Text),
    Column("inputs", Integer, nullable=False, server_default=text("0")),  # how many inputs it covers
    PrimaryKeyConstraint("stream_id", "after_seq"),
)

# What was sent to each stream, numbered 1, 2, 3 …, until the stream ends (see `db.inputs`).
input_ = Table(
    "input",
    metadata,
    Column("stream_id", UUID, nullable=False),
    Column("n", Integer, nullable=False),
    Column("content", LargeBinary, nullable=False),  # JSON
    Column("key", Text),  # the sender's idempotency key
    Column("created_at", _Timestamp, nullable=False, server_default=text("clock_timestamp()")),
    PrimaryKeyConstraint("stream_id", "n"),
    UniqueConstraint("stream_id", "key"),
)

# The results of the steps of running streams: inserted once, never updated (see `db.steps`).
step = Table(
    "step",
    metadata,
    Column("stream_id", UUID, nullable=False),
    Column("name", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),  # of the arguments
    Column("occurrence", Integer, nullable=False),  # counts the same name and arguments from 0
    Column("result", LargeBinary, nullable=False),  # JSON
    PrimaryKeyConstraint("stream_id", "name", "digest", "occurrence"),
)

# Calls of `stop` that workers have yet to make, for streams that have ended early (see `db.stop_calls`).
stop_call = Table(
    "stop_call",
    metadata,
    Column("stream_id", UUID, primary_key=True),
    Column("generator", Text, nullable=False),
    Column("state", LargeBinary, nullable=False),
    Column("created_at", _Timestamp, nullable=False, server_default=text("clock_timestamp()")),
    Column("due_at", _Timestamp, nullable=False, server_default=text("clock_timestamp()")),
    Column("tries", Integer, nullable=False, server_default=text("0")),
)

# Calls of webhooks that workers have yet to make, for streams that have ended. A trigger inserts them.
webhook_call = Table(
    "webhook_call",
    metadata,
    Column("stream_id", UUID, primary_key=True),
    Column("url", Text, nullable=False),
    Column("created_at", _Timestamp, nullable=False, server_default=text("clock_timestamp()")),
    Column("due_at", _Timestamp, nullable=False, server_default=text("clock_timestamp()")),
    Column("tries", Integer, nullable=False, server_default=text("0")),
    Column("error", Text),  # of the last try
    Index("ix_webhook_call_due_at", "due_at"),
)

# The streams that are written over HTTP, from their creation to their deletion (see `db.external_streams`).
external_stream = Table(
    "external_stream",
    metadata,
    Column("stream_id", UUID, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("path", Text),  # below /v1/stream/; NULL: its id is its path
    Column("kind", Text, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("ttl_seconds", BIGINT),  # how long it is kept after its last use
    Column("expires_at", _Timestamp),
    Column("used_at", _Timestamp, nullable=False, server_default=text("clock_timestamp()")),
    Column("tail", Integer, nullable=False, server_default=text("0")),  # the number of its last event
    Column("size_bytes", BIGINT, nullable=False, server_default=text("0")),
    Column("tokens", Integer, nullable=False, server_default=text("0")),
    Column("first_token_at", _Timestamp),
    Column("heard_at", _Timestamp, nullable=False, server_default=text("clock_timestamp()")),  # from a producer
    Column("stream_seq", Text),  # the last `Stream-Seq`
    Column("producers", Integer, nullable=False, server_default=text("0")),  # how many rows `producer` has for it
    Column("closed", Boolean, nullable=False, server_default=false()),
    CheckConstraint("kind IN ('events', 'json', 'text', 'bytes')", name="kind"),
    UniqueConstraint("tenant", "path"),
    Index("ix_external_stream_open", "stream_id", postgresql_where=text("NOT closed")),
)

# What each producer of such a stream has appended, so that it can repeat an append.
producer = Table(
    "producer",
    metadata,
    Column("stream_id", UUID, nullable=False),
    Column("producer_id", Text, nullable=False),
    Column("epoch", BIGINT, nullable=False),
    Column("last_seq", BIGINT, nullable=False),
    PrimaryKeyConstraint("stream_id", "producer_id"),
)

worker = Table(
    "worker",
    metadata,
    Column("id", UUID, primary_key=True, server_default=text(UUIDV7)),
    Column("name", Text, nullable=False),
    Column("generators", ARRAY(Text), nullable=False),
    Column("concurrency", Integer, nullable=False),
    Column("heartbeat", BIGINT, nullable=False, server_default=text("0")),
    Column("heartbeat_at", _Timestamp, nullable=False, server_default=text("clock_timestamp()")),
    Column("started_at", _Timestamp, nullable=False, server_default=text("clock_timestamp()")),
    Column("tokens", BIGINT, nullable=False, server_default=text("0")),  # that it has generated
    # At its last heartbeat, the streams whose generators had been silent longest, and each silence in seconds.
    Column("silent", ARRAY(UUID), nullable=False, server_default=text("'{}'")),
    Column("silent_seconds", ARRAY(Double), nullable=False, server_default=text("'{}'")),
    Column("code", Text),  # the revision of the schema that its code works with; NULL before 0022
    Column("has_end_hook", Boolean, nullable=False, server_default=false()),
)

# The state of each pod, which it rewrites at each heartbeat (see `db.pod_rows`).
pod = Table(
    "pod",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("name", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("started_at", _Timestamp, nullable=False, server_default=text("clock_timestamp()")),
    Column("noted_at", _Timestamp, nullable=False, server_default=text("clock_timestamp()")),
    Column("state", Text, nullable=False),
    Column("listener", Text, nullable=False),
    Column("subscribers", Integer, nullable=False),
    Column("connections", Integer, nullable=False),
    # The counts in the buckets of the histogram `baton_delivery_seconds` (delay from commit to socket).
    Column("deliveries", ARRAY(BIGINT), nullable=False),
    # The watched streams and the number of viewers of each: of all streams, or of those from `watched_from` on.
    Column("watched", ARRAY(UUID), nullable=False),
    Column("viewers", ARRAY(Integer), nullable=False),
    Column("watched_from", UUID),
    Column("code", Text),  # as in `worker`
    prefixes=["UNLOGGED"],
)

idempotency_key = Table(
    "idempotency_key",
    metadata,
    Column("tenant", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("request_hash", LargeBinary, nullable=False),
    Column("stream_id", UUID, nullable=False),
    Column("expires_at", _Timestamp, nullable=False),
    PrimaryKeyConstraint("tenant", "key"),
    Index("ix_idempotency_key_expires_at", "expires_at"),
    Index("ix_idempotency_key_stream_id", "stream_id"),
)

# Credentials of callers' servers. Of a secret, only the hash is stored.
api_key = Table(
    "api_key",
    metadata,
    Column("id", UUID, primary_key=True, server_default=text(UUIDV7)),
    Column("name", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("secret_hash", LargeBinary, nullable=False),
    Column("created_at", _Timestamp, nullable=False, server_default=text("clock_timestamp()")),
    Column("expires_at", _Timestamp),
    Column("revoked_at", _Timestamp),
    Index("uq_api_key_name", "name", unique=True, postgresql_where=text("revoked_at IS NULL")),
)

# The keys with which workers sign notifications (see `db.signing_keys`).
notify_key = Table(
    "notify_key",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True),
    Column("secret", LargeBinary, nullable=False),
    Column("created_at", _Timestamp, nullable=False, server_default=text("clock_timestamp()")),
    CheckConstraint("octet_length(secret) >= 32", name="secret"),
)

# One row: the marker that tells this history of the database apart from others of the same timeline.
history = Table(
    "history",
    metadata,
    Column("single", Boolean, primary_key=True, server_default=true()),
    Column("marker", Text, nullable=False),
    CheckConstraint("single", name="single"),
)

# When the token bucket of each caller is full again (see `db.rate_buckets`).
token_bucket = Table(
    "token_bucket",
    metadata,
    Column("tenant", Text, nullable=False),
    Column("caller", Text, nullable=False),
    Column("slot", BIGINT, nullable=False),  # when it was last updated, in seconds since 1970
    Column("full_at", _Timestamp, nullable=False),
    PrimaryKeyConstraint("tenant", "caller", "slot"),
    prefixes=["UNLOGGED"],
)

# The same, for pods of the previous release. This release does not use it.
bucket = Table(
    "bucket",
    metadata,
    Column("tenant", Text, nullable=False),
    Column("caller", Text, nullable=False),
    Column("full_at", _Timestamp, nullable=False),
    PrimaryKeyConstraint("tenant", "caller"),
    prefixes=["UNLOGGED"],
)

# One row, after the first stream has expired.
retention = Table(
    "retention",
    metadata,
    Column("single", Boolean, primary_key=True, server_default=true()),
    Column("expired_before", UUID, nullable=False),
    CheckConstraint("single", name="single"),
)

# One row: how many days a new partition of the log holds.
partitioning = Table(
    "partitioning",
    metadata,
    Column("single", Boolean, primary_key=True, server_default=true()),
    Column("days", Integer, nullable=False),
    CheckConstraint("single", name="single"),
    CheckConstraint("days BETWEEN 1 AND 366", name="days"),
)

# One row: the oldest code that works with this schema.
compatibility = Table(
    "compatibility",
    metadata,
    Column("single", Boolean, primary_key=True, server_default=true()),
    Column("oldest_code", Text, nullable=False),
    CheckConstraint("single", name="single"),
)

# One row: which database this is, among those of its installation.
database_identity = Table(
    "database_identity",
    metadata,
    Column("single", Boolean, primary_key=True, server_default=true()),
    Column("installation", UUID, nullable=False, server_default=text("gen_random_uuid()")),
    Column("number", Integer, nullable=False, server_default=text("0")),  # never changes once there are streams
    CheckConstraint("single", name="single"),
    CheckConstraint("number BETWEEN 0 AND 4095", name="number"),
)

# How several databases share new streams: the weight of each number, from a moment on (see `db.placements`). Each
# database has all rows.
placement = Table(
    "placement",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("weights", JSONB, nullable=False),
    Column("effective_at", _Timestamp, nullable=False),
)
