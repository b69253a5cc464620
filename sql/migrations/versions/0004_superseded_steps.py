"""What a step's key is without its attempt, so that a forced recomputation supersedes what was there."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    comment = "The key without the attempt; the newest of a base supersedes."
    op.add_column("steps", sa.Column("base", sa.Text(), nullable=True, comment=comment))
    # of a forced step that is there already the base is not known: it stays what only its own run finds
    op.execute("UPDATE steps SET base = key")
    op.alter_column("steps", "base", nullable=False)
    op.create_index("steps_base_idx", "steps", ["base"], unique=False)


def downgrade() -> None:
    op.drop_column("steps", "base")
