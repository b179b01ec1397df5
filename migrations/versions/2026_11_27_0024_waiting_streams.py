"""Streams that wait for people: their inputs, the status `waiting`, places in the queue, webhooks.

Revision: 0024
Follows: 0023

New columns of `stream` and `stream_state` that are nullable or have constant defaults, so no row is rewritten, and two
new tables. The default of `queue_position` is set after the column was added, so that it holds for new rows only; the
few queued rows get theirs by an update. The CHECK of `stream.status` is replaced by one that is not validated yet.

Code before this revision takes `waiting` for the status of an ended stream, and a held stream for one to claim. So the
first such stream appears only once no such code runs any more (`baton.raise_oldest_code`). A worker of the release
before that gives a stream back to the queue does not know its place there: a trigger sets it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from baton.schema import ddl

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

LOCKS = {"stream": "ACCESS EXCLUSIVE", "stream_state": "ACCESS EXCLUSIVE", "worker": "ACCESS EXCLUSIVE"}

_STATUSES = "'queued', 'running', 'waiting', 'open', 'completed', 'failed', 'cancelled'"
_STATUSES_BEFORE = "'queued', 'running', 'open', 'completed', 'failed', 'cancelled'"
_NOW = sa.text("clock_timestamp()")

# Adds an input to a stream, and wakes the stream if it waits. `result` is 'added'; 'woken', if it waited; 'repeated' if
# the key has added the same content before, and 'conflict' if other content; 'full' if it has `most` inputs; 'ended';
# or 'missing'. The lock on the row makes this wait for the beginning of a wait, or the wait for this.
ADD_INPUT = """
CREATE FUNCTION baton.add_input(
    stream uuid, content bytea, idempotency_key text, most integer, OUT number integer, OUT result text
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known_status text;
    known_inputs integer;
    known_content bytea;
BEGIN
    SELECT s.status, s.inputs INTO known_status, known_inputs
    FROM baton.stream AS s WHERE s.id = stream FOR NO KEY UPDATE;
    IF known_status IS NULL THEN
        result := 'missing';
        RETURN;
    END IF;
    IF idempotency_key IS NOT NULL THEN
        SELECT i.n, i.content INTO number, known_content
        FROM baton.input AS i WHERE i.stream_id = stream AND i.key = idempotency_key;
        IF FOUND THEN
            result := CASE WHEN known_content = content THEN 'repeated' ELSE 'conflict' END;
            RETURN;
        END IF;
    END IF;
    IF known_status IN ('completed', 'failed', 'cancelled') THEN
        result := 'ended';
        RETURN;
    ELSIF known_inputs >= most THEN
        result := 'full';
        RETURN;
    END IF;
    number := known_inputs + 1;
    INSERT INTO baton.input (stream_id, n, content, key) VALUES (stream, number, content, idempotency_key);
    IF known_status = 'waiting' THEN
        result := 'woken';
        UPDATE baton.stream AS s
        SET inputs = number, status = 'queued', interruption = 'input', attempts = 0, queued_at = clock_timestamp(),
            queue_position = NULL, held_until = clock_timestamp()
        WHERE s.id = stream;
    ELSE
        result := 'added';
        UPDATE baton.stream AS s SET inputs = number WHERE s.id = stream;
    END IF;
END
$$
"""

NOTE_WEBHOOK = """
CREATE FUNCTION baton.note_webhook() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO baton.webhook_call (stream_id, url) VALUES (NEW.id, NEW.webhook) ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$
"""
# So whatever ends a stream, the end and the call are in the database together, or neither is.
WEBHOOK_TRIGGER = """
CREATE TRIGGER note_webhook AFTER UPDATE OF status ON baton.stream FOR EACH ROW
WHEN (NEW.webhook IS NOT NULL AND NEW.status IN ('completed', 'failed', 'cancelled')
      AND OLD.status NOT IN ('completed', 'failed', 'cancelled'))
EXECUTE FUNCTION baton.note_webhook()
"""

# As `db.stream_queue` gives a stream back: before the first of its line (see `db.queue_lines`), since viewers have a
# part of its answer. There is no watermark here; only what an older worker gives back comes this way.
STAMP_REQUEUED = """
CREATE FUNCTION baton.stamp_requeued() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    line text[] := ARRAY(
        SELECT offered FROM baton.worker AS w, unnest(w.generators) AS offered
        WHERE NEW.generator = ANY (w.generators)
        GROUP BY offered
        HAVING count(*) = (SELECT count(*) FROM baton.worker AS w WHERE NEW.generator = ANY (w.generators))
    );
BEGIN
    NEW.queue_position := coalesce((
        SELECT s.queue_position
               - CASE WHEN s.epoch > 0 AND s.interruption IN ('worker_lost', 'worker_left') THEN interval '0'
                      ELSE interval '1 us' END
        FROM baton.stream AS s
        WHERE s.status = 'queued' AND s.queue_position IS NOT NULL AND s.generator = ANY (line || NEW.generator)
        ORDER BY s.queue_position, s.id LIMIT 1
    ), clock_timestamp());
    RETURN NEW;
END
$$
"""
REQUEUED_TRIGGER = """
CREATE TRIGGER stamp_requeued BEFORE UPDATE OF status ON baton.stream FOR EACH ROW
WHEN (NEW.status = 'queued' AND OLD.status = 'running'
      AND NEW.queue_position IS NOT DISTINCT FROM OLD.queue_position)
EXECUTE FUNCTION baton.stamp_requeued()
"""


def upgrade() -> None:
    stamp = sa.DateTime(timezone=True)
    for column in (
        sa.Column("inputs", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("queue_position", stamp),
        sa.Column("held_until", stamp),
        sa.Column("start_after", stamp),
        sa.Column("priority", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("waiting_since", stamp),
        sa.Column("wait_until", stamp),
        sa.Column("wait_ends", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("waited_seconds", sa.Double, nullable=False, server_default=sa.text("0")),
        sa.Column("webhook", sa.Text),
        sa.Column("hook_failed", sa.Boolean, nullable=False, server_default=sa.false()),
    ):
        op.add_column("stream", column, schema="baton")
    op.alter_column("stream", "queue_position", server_default=_NOW, schema="baton")
    op.execute(
        "UPDATE baton.stream SET queue_position = coalesce(queued_at, created_at) "
        "WHERE status = 'queued' AND queue_position IS NULL"
    )
    op.add_column(
        "stream_state", sa.Column("inputs", sa.Integer, nullable=False, server_default=sa.text("0")), schema="baton"
    )
    op.add_column(
        "worker", sa.Column("has_end_hook", sa.Boolean, nullable=False, server_default=sa.false()), schema="baton"
    )
    op.create_table(
        "input",
        sa.Column("stream_id", sa.UUID, nullable=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("key", sa.Text),
        sa.Column("created_at", stamp, nullable=False, server_default=_NOW),
        sa.PrimaryKeyConstraint("stream_id", "n", name="pk_input"),
        sa.UniqueConstraint("stream_id", "key", name="uq_input_stream_id_key"),
        schema="baton",
    )
    op.create_table(
        "webhook_call",
        sa.Column("stream_id", sa.UUID, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("created_at", stamp, nullable=False, server_default=_NOW),
        sa.Column("due_at", stamp, nullable=False, server_default=_NOW),
        sa.Column("tries", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("error", sa.Text),
        sa.PrimaryKeyConstraint("stream_id", name="pk_webhook_call"),
        schema="baton",
    )
    for statement in (ADD_INPUT, NOTE_WEBHOOK, WEBHOOK_TRIGGER, STAMP_REQUEUED, REQUEUED_TRIGGER):
        op.execute(statement)
    # Otherwise any role that may use the schema could write as its owner.
    op.execute("REVOKE ALL ON FUNCTION baton.add_input(uuid, bytea, text, integer) FROM PUBLIC")
    # Or fire this one from a table of its own, for a stream and a URL of its choice.
    op.execute("REVOKE ALL ON FUNCTION baton.note_webhook() FROM PUBLIC")
    # The constraint that replaces it, in the same transaction, allows one value more.
    op.execute("-- squawk-ignore ban-drop-constraint\nALTER TABLE baton.stream DROP CONSTRAINT ck_stream_status")
    ddl.add_check("stream", "ck_stream_status", f"status IN ({_STATUSES})")
    ddl.add_check("stream", "ck_stream_priority", "priority BETWEEN -1 AND 1")


def downgrade() -> None:
    op.execute("ALTER TABLE baton.stream DROP CONSTRAINT ck_stream_priority")
    op.execute("ALTER TABLE baton.stream DROP CONSTRAINT ck_stream_status")
    ddl.add_check("stream", "ck_stream_status", f"status IN ({_STATUSES_BEFORE})")
    ddl.validate("stream", "ck_stream_status")
    for name in ("stamp_requeued", "note_webhook"):
        op.execute(f"DROP TRIGGER {name} ON baton.stream")
        op.execute(f"DROP FUNCTION baton.{name}()")
    op.execute("DROP FUNCTION baton.add_input(uuid, bytea, text, integer)")
    op.drop_table("webhook_call", schema="baton")
    op.drop_table("input", schema="baton")
    op.drop_column("worker", "has_end_hook", schema="baton")
    op.drop_column("stream_state", "inputs", schema="baton")
    for name in (
        *("hook_failed", "webhook", "waited_seconds", "wait_ends", "wait_until", "waiting_since"),
        *("priority", "start_after", "held_until", "queue_position", "inputs"),
    ):
        op.drop_column("stream", name, schema="baton")
