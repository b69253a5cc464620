"""Documents kept beside a run, such as what its table checks found."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "run_artifacts",
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["digest"], ["artifacts.digest"], name="run_artifacts_digest_fkey"),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="run_artifacts_run_fkey", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "role", name="run_artifacts_pkey"),
    )


def downgrade() -> None:
    op.drop_table("run_artifacts")
