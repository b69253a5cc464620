"""A run may be cancelled by a person. What the review queue reads is found sooner."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0015"


def upgrade() -> None:
    op.alter_column("runs", "state", comment="running, success, failed or cancelled.")
    op.create_index("run_shots_seen_idx", "run_shots", ["shot", "run"], postgresql_where=sa.text("final IS NOT NULL"))
    # held images have failed checks: without this Postgres expects a twentieth of them
    op.execute("CREATE STATISTICS run_shots_state_checks (mcv) ON state, checks FROM run_shots")


def downgrade() -> None:
    op.execute("DROP STATISTICS run_shots_state_checks")
    op.drop_index("run_shots_seen_idx", "run_shots")
    op.execute("UPDATE runs SET state = 'failed' WHERE state = 'cancelled'")
    op.alter_column("runs", "state", comment="running, success or failed.")
