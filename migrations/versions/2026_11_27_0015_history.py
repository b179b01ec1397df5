"""The history of the database in which a stream was created, and the claim that may write to it.

Revision: 0015
Follows: 0014

A history is a marker followed by the server's timeline. Each promotion and each restore to a point in time raises the
timeline; the marker covers what leaves it unchanged. If the server does not show its timeline, the marker stands alone.
The column's default is set after the column is added, so no row is rewritten. Older streams have no history, and count
as streams of the current one. Code of the release before creates streams with a history, and claims without a token.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

LOCKS = {"stream": "ACCESS EXCLUSIVE"}

NEW_MARKER = "encode(substring(uuid_send(gen_random_uuid()) FOR 4), 'hex')"

# It is right immediately after a promotion, when pg_control_checkpoint() is still late. It runs with its owner's
# rights, so the default works for roles whose grants are older than this table. On a standby it fails, because a log
# that lags there proves nothing.
CURRENT_HISTORY = """
CREATE FUNCTION baton.current_history() RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF pg_is_in_recovery() THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE = 'this server is a standby';
    END IF;
    RETURN (SELECT marker FROM baton.history) || '/' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8);
EXCEPTION WHEN insufficient_privilege OR feature_not_supported OR undefined_function THEN
    RETURN (SELECT marker FROM baton.history) || '/';
END
$$
"""

# A counter that has fallen proves that the database went back in time. Several sessions may see that, and the first one
# replaces the marker. If the timeline has changed, none does.
BEGIN_HISTORY = f"""
CREATE FUNCTION baton.begin_history(seen text, worker_id uuid, counter bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF baton.current_history() = seen
       AND EXISTS (SELECT FROM baton.worker AS w WHERE w.id = worker_id AND w.heartbeat < counter) THEN
        UPDATE baton.history SET marker = {NEW_MARKER} WHERE marker = split_part(seen, '/', 1);
    END IF;
    RETURN baton.current_history();
END
$$
"""  # noqa: S608


def upgrade() -> None:
    op.create_table(
        "history",
        sa.Column("single", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("marker", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("single", name="pk_history"),
        sa.CheckConstraint("single", name="ck_history_single"),
        schema="baton",
    )
    op.execute(f"INSERT INTO baton.history (marker) VALUES ({NEW_MARKER})")  # noqa: S608
    op.execute(CURRENT_HISTORY)
    op.execute(BEGIN_HISTORY)
    op.add_column("stream", sa.Column("history", sa.Text), schema="baton")
    op.add_column("stream", sa.Column("claim_token", sa.UUID), schema="baton")
    op.alter_column("stream", "history", server_default=sa.text("baton.current_history()"), schema="baton")


def downgrade() -> None:
    op.drop_column("stream", "claim_token", schema="baton")
    op.drop_column("stream", "history", schema="baton")
    op.execute("DROP FUNCTION baton.begin_history(text, uuid, bigint)")
    op.execute("DROP FUNCTION baton.current_history()")
    op.drop_table("history", schema="baton")
