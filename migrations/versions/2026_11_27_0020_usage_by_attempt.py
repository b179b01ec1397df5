"""The usage of each attempt of a stream, and the silent streams of a worker.

Revision: 0020
Follows: 0019

A nullable column without a default, and two with constant defaults, so no row is rewritten.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

LOCKS = {"stream": "ACCESS EXCLUSIVE", "worker": "ACCESS EXCLUSIVE"}


def upgrade() -> None:
    op.add_column("stream", sa.Column("usage_by_attempt", postgresql.JSONB), schema="baton")
    op.add_column("worker", _empty("silent", postgresql.UUID()), schema="baton")
    op.add_column("worker", _empty("silent_seconds", sa.Double()), schema="baton")


def downgrade() -> None:
    op.drop_column("worker", "silent_seconds", schema="baton")
    op.drop_column("worker", "silent", schema="baton")
    op.drop_column("stream", "usage_by_attempt", schema="baton")


def _empty(name: str, kind: sa.types.TypeEngine[Any]) -> sa.Column[Any]:
    return sa.Column(name, postgresql.ARRAY(kind), nullable=False, server_default=sa.text("'{}'"))
