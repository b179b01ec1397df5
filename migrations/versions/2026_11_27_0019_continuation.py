"""What a stream continues: the message of the AI SDK that it adds to, and the tool calls that the user approved.

Revision: 0019
Follows: 0018

A nullable column without a default, so no row is rewritten. It is JSON as bytes, like the input.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

LOCKS = {"stream": "ACCESS EXCLUSIVE"}


def upgrade() -> None:
    op.add_column("stream", sa.Column("continuation", sa.LargeBinary), schema="baton")


def downgrade() -> None:
    op.drop_column("stream", "continuation", schema="baton")
