"""A lost step says whether `packshot prune` removed its outputs: then nobody misses them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    pruned = "Its outputs were removed on purpose."
    op.add_column(
        "lost_steps", sa.Column("pruned", sa.Boolean(), server_default="false", nullable=False, comment=pruned)
    )


def downgrade() -> None:
    op.drop_column("lost_steps", "pruned")
