"""An index to find the idempotency keys of a stream that is erased or has expired.

Revision: 0006
Follows: 0005

It is built concurrently, so streams with keys can be created meanwhile. An interrupted build leaves an invalid index,
which the next run replaces.
"""

from __future__ import annotations

from baton.schema import ddl

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

LOCKS = {"idempotency_key": "SHARE UPDATE EXCLUSIVE"}

INDEX = "ix_idempotency_key_stream_id"


def upgrade() -> None:
    ddl.create_index(INDEX, "idempotency_key", "(stream_id)")


def downgrade() -> None:
    ddl.drop_index(INDEX)
