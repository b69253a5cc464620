"""Which run computed a step, so that a task that died after computing it does not find it and call it reused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    comment = "The run that computed it; empty where it is not known."
    op.add_column("steps", sa.Column("run", sa.Text(), server_default="", nullable=False, comment=comment))


def downgrade() -> None:
    op.drop_column("steps", "run")
