"""The function with which an application creates a stream in a transaction of its own.

Revision: 0026
Follows: 0025
"""

from __future__ import annotations

from alembic import op

from baton.schema import enqueue
from baton.schema.tables import UUIDV7

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

LOCKS: dict[str, str] = {}


def upgrade() -> None:
    op.execute(enqueue.definition(UUIDV7))
    # Otherwise any role that may use the schema could write as its owner.
    op.execute(f"REVOKE ALL ON FUNCTION {enqueue.SIGNATURE} FROM PUBLIC")


def downgrade() -> None:
    op.execute(f"DROP FUNCTION {enqueue.SIGNATURE}")
