"""The index of streams that have not ended, whatever their status.

Revision: 0023
Follows: 0022

It is built concurrently, and replaces the one of queued and running streams. It serves the queries of the release
before, too, since its condition follows from theirs.
"""

from __future__ import annotations

from baton.schema import ddl

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

LOCKS = {"stream": "SHARE UPDATE EXCLUSIVE"}


def upgrade() -> None:
    ddl.create_index(
        "ix_stream_not_ended", "stream", "(tenant, id) WHERE status NOT IN ('completed', 'failed', 'cancelled')"
    )
    ddl.drop_index("ix_stream_live")
    ddl.validate("stream", "ck_stream_status")


def downgrade() -> None:
    ddl.create_index("ix_stream_live", "stream", "(tenant, id) WHERE status IN ('queued', 'running')")
    ddl.drop_index("ix_stream_not_ended")
