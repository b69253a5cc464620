"""A run may be cancelled by a person."""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0014"


def upgrade() -> None:
    op.alter_column("runs", "state", comment="running, success, failed or cancelled.")


def downgrade() -> None:
    op.execute("UPDATE runs SET state = 'failed' WHERE state = 'cancelled'")
    op.alter_column("runs", "state", comment="running, success or failed.")
