"""Passed images that are drawn for a spot check, and the embeddings of photos that a person may cut out anew."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.create_table(
        "spot_checks",
        sa.Column("final", sa.Text(), nullable=False, comment="Digest of the image that was drawn."),
        sa.Column("run", sa.Text(), nullable=False, comment="The run that published it, and drew it when it ended."),
        sa.Column("shot", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="spot_checks_run_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["shot"], ["shots.id"], name="spot_checks_shot_fkey"),
        sa.PrimaryKeyConstraint("final", name="spot_checks_pkey"),
    )
    op.create_index("spot_checks_run_idx", "spot_checks", ["run"])
    op.create_table(
        "embeddings",
        sa.Column("photo", sa.Text(), nullable=False, comment="Digest of the photo."),
        sa.Column("model", sa.Text(), nullable=False, comment="sha256 of the weights that made it."),
        sa.Column("digest", sa.Text(), nullable=False, comment="Digest of the object."),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("photo", "model", name="embeddings_pkey"),
    )
    op.create_index("embeddings_used_at_idx", "embeddings", ["used_at"])


def downgrade() -> None:
    op.drop_table("embeddings")
    op.drop_table("spot_checks")
