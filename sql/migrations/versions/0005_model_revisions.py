"""Revisions of models with the figures that speak for them, and which of them was promoted when, by whom and why."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "model_revisions",
        sa.Column("profile", sa.Text(), nullable=False),
        sa.Column("part", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False, comment="Of the weights, as a step's key has it."),
        sa.Column("parent", sa.Text(), nullable=False, comment="sha256 of the weights that it was compared with."),
        sa.Column("files", postgresql.JSONB(), nullable=False, comment="File name to digest of the object."),
        sa.Column("data", sa.Text(), nullable=False, comment="Digest of the data set that it was trained on."),
        sa.Column("stages", postgresql.JSONB(), nullable=False, comment="Of each stage: pictures, steps, samples."),
        sa.Column("evaluation", postgresql.JSONB(), nullable=False, comment="E+ of its pictures of the frozen set."),
        sa.Column("baseline", postgresql.JSONB(), nullable=False, comment="E+ of the parent's pictures of that set."),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("profile", "part", "sha256", name="model_revisions_pkey"),
    )
    op.create_table(
        "model_promotions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("profile", sa.Text(), nullable=False),
        sa.Column("part", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False, comment="The comparison, or what a person overruled."),
        sa.Column("forced", sa.Boolean(), nullable=False, comment="A person decided against the figures."),
        sa.Column("promoted_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("rolled_back_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("rolled_back_by", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(
            ["profile", "part", "sha256"],
            ["model_revisions.profile", "model_revisions.part", "model_revisions.sha256"],
            name="model_promotions_profile_fkey",
        ),
        sa.PrimaryKeyConstraint("id", name="model_promotions_pkey"),
    )
    op.create_index("model_promotions_profile_part_idx", "model_promotions", ["profile", "part"], unique=False)


def downgrade() -> None:
    op.drop_table("model_promotions")
    op.drop_table("model_revisions")
