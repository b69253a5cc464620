"""A held image that a later run superseded is marked, so that the review queue does not look at it. An index counts the
steps that a run used."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0017"

SUPERSEDED = """
UPDATE run_shots SET superseded = true FROM runs r
WHERE r.id = run_shots.run AND run_shots.state = 'held' AND run_shots.final IS NOT NULL
  AND EXISTS (SELECT FROM run_shots later JOIN runs later_run ON later_run.id = later.run
              WHERE later.shot = run_shots.shot AND later.final IS NOT NULL
                AND (later_run.started_at, later_run.id) > (r.started_at, r.id))
"""


def upgrade() -> None:
    comment = "Of a held image: a later run made another one. False where nobody looked yet."
    op.add_column(
        "run_shots", sa.Column("superseded", sa.Boolean(), server_default="false", nullable=False, comment=comment)
    )
    op.execute(SUPERSEDED)
    op.drop_index("run_shots_held_idx", "run_shots")
    op.create_index(
        "run_shots_queue_idx",
        "run_shots",
        ["run", "position"],
        postgresql_include=["shot", "final", "checks"],
        postgresql_where=sa.text("state = 'held' AND final IS NOT NULL AND NOT superseded"),
    )
    op.create_index("run_steps_counted_idx", "run_steps", ["run", "stage", "reused", "chosen"])


def downgrade() -> None:
    op.drop_index("run_steps_counted_idx", "run_steps")
    op.drop_index("run_shots_queue_idx", "run_shots")
    op.create_index(
        "run_shots_held_idx",
        "run_shots",
        ["run", "position"],
        postgresql_where=sa.text("state = 'held' AND final IS NOT NULL"),
    )
    op.drop_column("run_shots", "superseded")
