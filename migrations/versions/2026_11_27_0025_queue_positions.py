"""The indexes of the queue by position, and of streams that are held or wait.

Revision: 0025
Follows: 0024

They are built concurrently, and replace the two by which the release before finds queued streams: each statement that
plans for `stream` locks all of its indexes. Until its workers are replaced, they read the index of streams that have
not ended instead.
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
    "ix_stream_held": (
        "(held_until, tenant, id) WHERE status = 'waiting' OR (status = 'queued' AND queue_position IS NULL)"
    ),
}
_INDEXES_BEFORE = {
    "ix_stream_queued": "(id) WHERE status = 'queued'",
    "ix_stream_requeued": "(queued_at) WHERE status = 'queued' AND epoch > 0",
}


def upgrade() -> None:
    for name, definition in _INDEXES.items():
        ddl.create_index(name, "stream", definition)
    for name in _INDEXES_BEFORE:
        ddl.drop_index(name)
    ddl.validate("stream", "ck_stream_status")
    ddl.validate("stream", "ck_stream_priority")


def downgrade() -> None:
    for name, definition in _INDEXES_BEFORE.items():
        ddl.create_index(name, "stream", definition)
    for name in reversed(_INDEXES):
        ddl.drop_index(name)
