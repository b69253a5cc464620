"""Products that left their feed; a quick way to what was taken back."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.add_column(
        "products",
        sa.Column("feed", sa.Text(), server_default="", nullable=False, comment="Name of the whole feed it is in."),
    )
    op.add_column(
        "products",
        sa.Column("left_at", sa.DateTime(timezone=True), comment="When that feed no longer had it; null while it has."),
    )
    op.create_index("products_left_idx", "products", ["sku"], postgresql_where=sa.text("left_at IS NOT NULL"))
    op.create_index(
        "publications_withdrawn_idx", "publications", ["shot"], postgresql_where=sa.text("withdrawn_by IS NOT NULL")
    )


def downgrade() -> None:
    op.drop_index("publications_withdrawn_idx", "publications")
    op.drop_index("products_left_idx", "products")
    op.drop_column("products", "left_at")
    op.drop_column("products", "feed")
