"""What each photo's address gave when it was last asked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.create_table(
        "photo_links",
        sa.Column("link", sa.Text(), nullable=False, comment="sha256 of the address in the feed."),
        sa.Column("photo", sa.Text(), nullable=False, comment="Digest of what it gave."),
        sa.Column("address", sa.Text(), nullable=False, comment="Where redirects led: whose word the next two are."),
        sa.Column("etag", sa.Text(), nullable=False),
        sa.Column("last_modified", sa.Text(), nullable=False),
        sa.Column("asked_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("link", name="photo_links_pkey"),
    )


def downgrade() -> None:
    op.drop_table("photo_links")
