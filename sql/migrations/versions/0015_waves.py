"""How many shots a run leaves to the next wave."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.add_column(
        "runs",
        sa.Column("put_off", sa.Integer(), server_default="0", nullable=False, comment="Shots left to the next wave."),
    )


def downgrade() -> None:
    op.drop_column("runs", "put_off")
