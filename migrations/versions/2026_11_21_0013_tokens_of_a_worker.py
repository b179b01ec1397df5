"""The number of tokens that each worker has generated, written with its heartbeat.

Revision: 0013
Follows: 0012

The column has a constant default, so no row is rewritten. Older workers leave it at 0.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

LOCKS = {"worker": "ACCESS EXCLUSIVE"}


def upgrade() -> None:
    op.add_column("worker", sa.Column("tokens", sa.BIGINT, nullable=False, server_default=sa.text("0")), schema="baton")


def downgrade() -> None:
    op.drop_column("worker", "tokens", schema="baton")
