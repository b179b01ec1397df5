"""Indexes that let a read of the queue, or a count of live streams, start in the middle.

Revision: 0018
Follows: 0017

They are built concurrently, so streams can be created, claimed and ended meanwhile. The index by tenant and id replaces
the one by tenant alone, for the release before too, because it begins with the same column. Few streams are given back
to the queue, so the index of those costs a new stream nothing.
"""

from __future__ import annotations

from baton.schema import ddl

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

LOCKS = {"stream": "SHARE UPDATE EXCLUSIVE"}


def upgrade() -> None:
    ddl.create_index("ix_stream_requeued", "stream", "(queued_at) WHERE status = 'queued' AND epoch > 0")
    ddl.create_index("ix_stream_live", "stream", "(tenant, id) WHERE status IN ('queued', 'running')")
    ddl.drop_index("ix_stream_live_tenant")


def downgrade() -> None:
    ddl.create_index("ix_stream_live_tenant", "stream", "(tenant) WHERE status IN ('queued', 'running')")
    ddl.drop_index("ix_stream_live")
    ddl.drop_index("ix_stream_requeued")
