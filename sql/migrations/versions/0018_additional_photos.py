"""An additional photo of a product is a product of its own, which names the product and its number among the photos."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0019"


def upgrade() -> None:
    op.add_column(
        "product_versions",
        sa.Column(
            "photo_of", sa.Text, nullable=False, server_default="", comment="SKU that it is an additional photo of."
        ),
    )
    op.add_column(
        "product_versions",
        sa.Column(
            "photo_number", sa.Integer, nullable=False, server_default="1", comment="1: the main photo of its row."
        ),
    )
    for name, column in (("additional", "photo_of"), ("group", "item_group_id")):
        where = sa.text(f"{column} <> ''")
        op.create_index(f"product_versions_{name}_idx", "product_versions", [column], postgresql_where=where)


def downgrade() -> None:
    op.drop_index("product_versions_group_idx", "product_versions")
    op.drop_index("product_versions_additional_idx", "product_versions")
    op.drop_column("product_versions", "photo_number")
    op.drop_column("product_versions", "photo_of")
