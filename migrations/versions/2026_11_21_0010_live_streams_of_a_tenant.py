"""An index to count a tenant's streams that have not ended.

Revision: 0010
Follows: 0009

It is built concurrently, so streams can be created and ended meanwhile. Updates in place (HOT) stay possible: `status`
is already in the conditions of other indexes, and a stream's tenant never changes.
"""

from __future__ import annotations

from baton.schema import ddl

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

LOCKS = {"stream": "SHARE UPDATE EXCLUSIVE"}

INDEX = "ix_stream_live_tenant"


def upgrade() -> None:
    ddl.create_index(INDEX, "stream", "(tenant) WHERE status IN ('queued', 'running')")


def downgrade() -> None:
    ddl.drop_index(INDEX)
