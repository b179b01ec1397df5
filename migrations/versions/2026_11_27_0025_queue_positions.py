"""The indexes of the queue by position, of streams that are held, and of streams that wait.

Revision: 0025
Follows: 0024

They are built concurrently. The indexes by which the release before finds queued streams stay for as long as its
workers may run: the next release drops them.
"""

from __future__ import annotations

from baton.schema import ddl

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

LOCKS = {"stream": "SHARE UPDATE EXCLUSIVE"}

_INDEXES = {
    "ix_stream_in_line": "(queue_position, id) WHERE status = 'queued' AND queue_position IS NOT NULL",
    "ix_stream_tenant_line": (
        "(tenant, priority, queue_position) WHERE status = 'queued' AND queue_position IS NOT NULL"
    ),
    "ix_stream_held": "(held_until) WHERE status = 'queued' AND queue_position IS NULL",
    "ix_stream_held_tenant": "(tenant, id) WHERE status = 'queued' AND queue_position IS NULL",
    "ix_stream_waiting": "(wait_until) WHERE status = 'waiting'",
}


def upgrade() -> None:
    for name, definition in _INDEXES.items():
        ddl.create_index(name, "stream", definition)
    ddl.validate("stream", "ck_stream_status")
    ddl.validate("stream", "ck_stream_priority")


def downgrade() -> None:
    for name in reversed(_INDEXES):
        ddl.drop_index(name)
