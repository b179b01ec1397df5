"""The indexes of streams that ended without their end hook, and of webhook calls by the moment they are due.

Revision: 0027
Follows: 0026

Both are built concurrently, and are empty at first.
"""

from __future__ import annotations

from baton.schema import ddl

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

LOCKS = {"stream": "SHARE UPDATE EXCLUSIVE", "webhook_call": "SHARE UPDATE EXCLUSIVE"}


def upgrade() -> None:
    ddl.create_index("ix_stream_hook_failed", "stream", "(id) WHERE hook_failed")
    ddl.create_index("ix_webhook_call_due_at", "webhook_call", "(due_at)")


def downgrade() -> None:
    ddl.drop_index("ix_webhook_call_due_at")
    ddl.drop_index("ix_stream_hook_failed")
