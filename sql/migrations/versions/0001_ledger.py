"""The first ledger: products, runs, steps, artifacts, verdicts and publications."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "approvals",
        sa.Column("digest", sa.Text(), nullable=False, comment="The `final` image that a person approved."),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="approvals_pkey"),
    )
    op.create_table(
        "artifacts",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="artifacts_pkey"),
    )
    op.create_table(
        "product_versions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False, comment="sha256 over everything below but the time."),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("category", sa.Text(), nullable=False),
        sa.Column("image_link", sa.Text(), nullable=False),
        sa.Column("photo", sa.Text(), nullable=True, comment="Digest of the photo; null with a photo_problem."),
        sa.Column("photo_problem", sa.Text(), server_default="", nullable=False),
        sa.Column("item_group_id", sa.Text(), server_default="", nullable=False),
        sa.Column("extra", postgresql.JSONB(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="product_versions_pkey"),
    )
    op.create_index("product_versions_changed_at_idx", "product_versions", ["changed_at"], unique=False)
    op.create_index("product_versions_photo_idx", "product_versions", ["photo"], unique=False)
    op.create_index("product_versions_sku_content_idx", "product_versions", ["sku", "content"], unique=False)
    op.create_table(
        "runs",
        sa.Column("id", sa.Text(), nullable=False, comment="Airflow's dag_run_id."),
        sa.Column("dag_id", sa.Text(), nullable=False),
        sa.Column("scene", sa.Text(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column(
            "feed", sa.Text(), server_default="", nullable=False, comment="Digest of the manifest, where there is one."
        ),
        sa.Column("params", postgresql.JSONB(), nullable=False),
        sa.Column("triggered_by", sa.Text(), server_default="", nullable=False),
        sa.Column("state", sa.Text(), nullable=False, comment="running, success or failed."),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "problem",
            postgresql.JSONB(),
            nullable=True,
            comment="What stopped publication: failed expectations and their rows.",
        ),
        sa.PrimaryKeyConstraint("id", name="runs_pkey"),
    )
    op.create_index("runs_triggered_by_started_at_idx", "runs", ["triggered_by", "started_at"], unique=False)
    op.create_table(
        "scenes",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("definition", postgresql.JSONB(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="scenes_pkey"),
    )
    op.create_table(
        "shots",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("scene", sa.Text(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="shots_pkey"),
        sa.UniqueConstraint("sku", "scene", "channel", name="shots_sku_scene_channel_key"),
    )
    op.create_table(
        "steps",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("parameters", postgresql.JSONB(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("attempt", sa.Text(), server_default="", nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("facts", postgresql.JSONB(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False, comment="host:process that computed it."),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("key", name="steps_pkey"),
    )
    op.create_index("steps_stage_created_at_idx", "steps", ["stage", "created_at"], unique=False)
    op.create_table(
        "products",
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("row", sa.Integer(), nullable=False, comment="Row of the feed that it was last read from."),
        sa.Column("version", sa.BigInteger(), nullable=False, comment="The current one."),
        sa.Column("first_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["version"], ["product_versions.id"], name="products_version_fkey"),
        sa.PrimaryKeyConstraint("sku", name="products_pkey"),
    )
    op.create_table(
        "publications",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("shot", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("superseded_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["digest"], ["artifacts.digest"], name="publications_digest_fkey"),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="publications_run_fkey"),
        sa.ForeignKeyConstraint(["shot"], ["shots.id"], name="publications_shot_fkey"),
        sa.PrimaryKeyConstraint("id", name="publications_pkey"),
    )
    op.create_index(
        "publications_current_key",
        "publications",
        ["shot"],
        unique=True,
        postgresql_where=sa.text("superseded_at IS NULL"),
    )
    op.create_index("publications_shot_digest_idx", "publications", ["shot", "digest"], unique=False)
    op.create_table(
        "run_shots",
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("shot", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("row", sa.Integer(), nullable=False),
        sa.Column("shard", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="run_shots_run_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["shot"], ["shots.id"], name="run_shots_shot_fkey"),
        sa.ForeignKeyConstraint(["version"], ["product_versions.id"], name="run_shots_version_fkey"),
        sa.PrimaryKeyConstraint("run", "position", name="run_shots_pkey"),
        sa.UniqueConstraint("run", "shot", name="run_shots_run_shot_key"),
    )
    op.create_index("run_shots_shot_idx", "run_shots", ["shot"], unique=False)
    op.create_table(
        "run_steps",
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("shot", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("reused", sa.Boolean(), nullable=False),
        sa.Column("chosen", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["key"], ["steps.key"], name="run_steps_key_fkey"),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="run_steps_run_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["shot"], ["shots.id"], name="run_steps_shot_fkey"),
        sa.PrimaryKeyConstraint("run", "shot", "key", name="run_steps_pkey"),
    )
    op.create_index("run_steps_key_idx", "run_steps", ["key"], unique=False)
    op.create_table(
        "step_inputs",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["key"], ["steps.key"], name="step_inputs_key_fkey", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("key", "role", name="step_inputs_pkey"),
    )
    op.create_index("step_inputs_digest_idx", "step_inputs", ["digest"], unique=False)
    op.create_table(
        "step_models",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["key"], ["steps.key"], name="step_models_key_fkey", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("key", "name", name="step_models_pkey"),
    )
    op.create_table(
        "step_outputs",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["digest"], ["artifacts.digest"], name="step_outputs_digest_fkey"),
        sa.ForeignKeyConstraint(["key"], ["steps.key"], name="step_outputs_key_fkey", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("key", "role", name="step_outputs_pkey"),
    )
    op.create_index("step_outputs_digest_idx", "step_outputs", ["digest"], unique=False)
    op.create_table(
        "verdicts",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("check", sa.Text(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("picture", sa.Text(), nullable=False, comment="Role of the step's output that shows where."),
        sa.ForeignKeyConstraint(["key"], ["steps.key"], name="verdicts_key_fkey", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("key", "position", name="verdicts_pkey"),
    )


def downgrade() -> None:
    for table in (
        "verdicts",
        "step_outputs",
        "step_models",
        "step_inputs",
        "run_steps",
        "run_shots",
        "publications",
        "products",
        "steps",
        "shots",
        "scenes",
        "runs",
        "product_versions",
        "artifacts",
        "approvals",
    ):
        op.drop_table(table)
