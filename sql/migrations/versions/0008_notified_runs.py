"""When people were notified that a run failed. What failed before this migration counts as notified."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0005"


def upgrade() -> None:
    comment = "When its failure was sent to the webhook and by mail."
    op.add_column("runs", sa.Column("notified_at", sa.DateTime(timezone=True), nullable=True, comment=comment))
    op.execute("UPDATE runs SET notified_at = now() WHERE state <> 'running'")


def downgrade() -> None:
    op.drop_column("runs", "notified_at")
