"""Decisions about held images take the place of approvals; a run's shot names its image and failed checks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    comment = "Digest of the `final` image that was inspected; null before."
    op.add_column("run_shots", sa.Column("final", sa.Text(), nullable=True, comment=comment))
    comment = "Failed checks, in order of the stages."
    checks = sa.Column("checks", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False, comment=comment)
    op.add_column("run_shots", checks)
    op.execute(
        """
        UPDATE run_shots rs SET final = i.digest
        FROM run_steps u JOIN step_inputs i ON i.key = u.key AND i.role = 'final'
        WHERE u.run = rs.run AND u.shot = rs.shot AND u.chosen AND u.stage = 'inspect'
        """
    )
    op.execute(
        """
        UPDATE run_shots rs SET checks = failed.checks
        FROM (SELECT u.run, u.shot, array_agg(v."check" ORDER BY u.stage, v.position) AS checks
              FROM run_steps u JOIN verdicts v ON v.key = u.key
              WHERE u.chosen AND NOT v.passed GROUP BY u.run, u.shot) failed
        WHERE failed.run = rs.run AND failed.shot = rs.shot
        """
    )
    op.create_index(
        "run_shots_held_idx",
        "run_shots",
        ["run", "position"],
        postgresql_where=sa.text("state = 'held' AND final IS NOT NULL"),
    )
    op.create_index("run_shots_final_idx", "run_shots", ["final"], postgresql_where=sa.text("final IS NOT NULL"))
    op.create_index("runs_started_at_idx", "runs", ["started_at"])
    op.create_index("steps_run_stage_idx", "steps", ["run", "stage"])
    op.create_index("publications_run_idx", "publications", ["run"])
    op.create_index(
        "publications_current_published_at_idx",
        "publications",
        ["published_at", "id"],
        postgresql_where=sa.text("superseded_at IS NULL"),
    )
    comment = "What the run came to, as `outcomes` counts it; null while it runs."
    op.add_column("runs", sa.Column("totals", postgresql.JSONB(), nullable=True, comment=comment))
    op.execute(
        """
        UPDATE runs r SET totals = jsonb_build_object(
            'stages', coalesce((
                SELECT jsonb_object_agg(stage, jsonb_build_array(computed, reused, seconds)) FROM (
                    SELECT used.stage, count(*) FILTER (WHERE NOT used.reused) AS computed,
                           count(*) FILTER (WHERE used.reused) AS reused,
                           coalesce(sum(steps.seconds) FILTER (WHERE NOT used.reused), 0.0) AS seconds
                    FROM (SELECT stage, key, bool_and(reused) AS reused FROM run_steps WHERE run = r.id
                          GROUP BY stage, key) used
                    JOIN steps USING (key) GROUP BY used.stage) counted), '{}'),
            'states', coalesce((
                SELECT jsonb_object_agg(state, shots) FROM (
                    SELECT state, count(*) AS shots FROM run_shots WHERE run = r.id GROUP BY state) counted), '{}'),
            'inspected', (SELECT count(*) FROM run_steps u
                          WHERE u.run = r.id AND u.stage = 'inspect' AND u.chosen AND NOT u.reused),
            'overcompleted', (SELECT count(*) FROM run_steps u JOIN verdicts v USING (key)
                              WHERE u.run = r.id AND u.stage = 'inspect' AND u.chosen AND NOT u.reused
                                AND v."check" = 'overcompletion' AND NOT v.passed),
            'images', (SELECT count(*) FROM publications p WHERE p.run = r.id))
        WHERE r.finished_at IS NOT NULL
        """
    )
    comment = "Who took it back; null where a later image superseded it."
    op.add_column("publications", sa.Column("withdrawn_by", sa.Text(), nullable=True, comment=comment))
    op.create_table(
        "decisions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("final", sa.Text(), nullable=False, comment="Digest of the image that it is about."),
        sa.Column("run", sa.Text(), nullable=False, comment="The run that held it."),
        sa.Column("shot", sa.BigInteger(), nullable=False),
        sa.Column("choice", sa.Text(), nullable=False, comment="approve, reject or retry."),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column(
            "batch", sa.Text(), server_default="", nullable=False, comment="Names those that were made as one, if any."
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("acted_run", sa.Text(), nullable=True, comment="The run that published the image, or tries again."),
        sa.Column("undone_by", sa.Text(), nullable=True),
        sa.Column("undone_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="decisions_run_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["shot"], ["shots.id"], name="decisions_shot_fkey"),
        sa.PrimaryKeyConstraint("id", name="decisions_pkey"),
    )
    op.create_index(
        "decisions_final_key", "decisions", ["final"], unique=True, postgresql_where=sa.text("undone_at IS NULL")
    )
    op.create_index("decisions_shot_idx", "decisions", ["shot"])
    op.create_index("decisions_batch_idx", "decisions", ["batch"], postgresql_where=sa.text("batch <> ''"))
    op.create_index(
        "decisions_open_idx",
        "decisions",
        ["id"],
        postgresql_where=sa.text("undone_at IS NULL AND acted_run IS NULL AND choice <> 'reject'"),
    )
    op.execute(
        """
        INSERT INTO decisions (final, run, shot, choice, by, created_at)
        SELECT DISTINCT ON (a.digest) a.digest, rs.run, rs.shot, 'approve', a.by, a.created_at
        FROM approvals a JOIN run_shots rs ON rs.final = a.digest JOIN runs r ON r.id = rs.run
        ORDER BY a.digest, r.started_at
        """
    )
    op.drop_table("approvals")


def downgrade() -> None:
    op.create_table(
        "approvals",
        sa.Column("digest", sa.Text(), nullable=False, comment="The `final` image that a person approved."),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="approvals_pkey"),
    )
    op.execute(
        "INSERT INTO approvals (digest, by, created_at) SELECT final, by, created_at FROM decisions"
        " WHERE choice = 'approve' AND undone_at IS NULL"
    )
    op.drop_table("decisions")
    op.drop_column("publications", "withdrawn_by")
    op.drop_index("publications_current_published_at_idx", "publications")
    op.drop_index("publications_run_idx", "publications")
    op.drop_index("steps_run_stage_idx", "steps")
    op.drop_column("runs", "totals")
    op.drop_index("runs_started_at_idx", "runs")
    op.drop_column("run_shots", "checks")
    op.drop_column("run_shots", "final")
