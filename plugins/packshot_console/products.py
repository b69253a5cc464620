"""A product's page: everything that was ever made of it, newest run first, with the steps that led to each image.

GET /products/{sku}
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request, Response
from sqlalchemy import text

from packshot_console.pages import page as render
from packshot_console.photos import PHOTOS, photo_words
from packshot_console.services import ledger
from packshot_console.walks import Walk, read_walks
from pipelines.ledger.decisions import Decision, decisions_about

PAGE_SIZE = 12

MOST_VARIANTS = 50
"""Products of the item group that are named."""

router = APIRouter()


@dataclass(frozen=True, slots=True)
class ProductImage:
    """What one run made of a photo of the product in one scene. `live` says that its image is shown now. `photo` says
    which photo it is, "" where there is one."""

    run: str
    scene: str
    channel: str
    started_at: datetime
    state: str
    reason: str
    live: bool
    photo: str
    decisions: tuple[Decision, ...]
    walk: Walk


@dataclass(frozen=True, slots=True)
class ProductView:
    """The page: `made` are those of this page, of `count` in all. `photo_of` is the product's SKU where the page is of
    an additional photo, and `variants` are other products of its item group: SKU and title."""

    sku: str
    photo_of: str
    variants: tuple[tuple[str, str], ...]
    title: str
    category: str
    count: int
    page: int
    pages: int
    made: tuple[ProductImage, ...]


@router.get("/products/{sku:path}")
def product_page(request: Request, sku: str, page: Annotated[int, Query(ge=1, le=10_000)] = 1) -> Response:
    """The page, or 404 for a SKU that the ledger does not know."""
    view = product(sku, page)
    if view is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, "the ledger knows no such product")
    return render(request, "product.html", view=view)


def product(sku: str, page: int) -> ProductView | None:
    """What the page shows, in ten queries; None for a SKU that the ledger does not know. A product's page has what was
    made of all its photos, that of an additional photo this photo alone."""
    values: dict[str, Any] = {"sku": sku, "most": MOST_VARIANTS}
    with ledger().engine.connect() as connection:
        about = connection.execute(text(_ABOUT), values).first()
        if about is None:
            return None
        related = connection.execute(text(_RELATED), values | {"group": about.item_group_id}).all()
        photos = {row.sku: row.photo_number for row in related if row.photo_number > 1}
        skus = [sku] if about.photo_of else [sku, *photos]
        values = {"skus": skus, "limit": PAGE_SIZE, "offset": (page - 1) * PAGE_SIZE}
        rows = connection.execute(text(_MADE), values).all()
        walks = read_walks(connection, {(row.run, row.shot): row.photo for row in rows})
    decided = decisions_about(ledger().engine, skus)
    images = rows[0].images if rows else 0
    return ProductView(
        sku=sku,
        photo_of=about.photo_of,
        variants=tuple((row.sku, row.title) for row in related if row.photo_number == 1),
        title=about.title,
        category=about.category,
        count=images,
        page=page,
        pages=max(1, -(-images // PAGE_SIZE)),
        made=tuple(
            ProductImage(
                run=row.run,
                scene=row.scene,
                channel=row.channel,
                started_at=row.started_at,
                state=row.state,
                reason=row.reason,
                live=walk.published is not None and walk.published == row.live,
                photo=photo_words(row.photo_number, row.photos),
                decisions=tuple(one for one in decided if row.final is not None and one.final == row.final),
                walk=walk,
            )
            for row in rows
            for walk in [walks[row.run, row.shot]]
        ),
    )


_ABOUT = """
SELECT v.title, v.category, v.item_group_id, v.photo_of
FROM products p JOIN product_versions v ON v.id = p.version WHERE p.sku = :sku
"""

# its additional photos, those that left the feed too, and the other products of its item group
_RELATED = """
SELECT p.sku, v.title, v.photo_number
FROM product_versions v JOIN products p ON p.sku = v.sku AND p.version = v.id
WHERE v.photo_of <> '' AND v.photo_of = :sku
UNION ALL
(SELECT p.sku, v.title, 1
 FROM product_versions v JOIN products p ON p.sku = v.sku AND p.version = v.id
 WHERE v.item_group_id <> '' AND v.item_group_id = :group AND v.photo_of = '' AND p.sku <> :sku AND p.left_at IS NULL
 ORDER BY p.row, p.sku LIMIT :most)
"""

_MADE = f"""
SELECT rs.run, rs.shot, rs.state, rs.reason, rs.final, r.started_at, s.scene, s.channel, v.photo, live.digest AS live,
       v.photo_number, {PHOTOS} AS photos, count(*) OVER () AS images
FROM shots s
JOIN run_shots rs ON rs.shot = s.id
JOIN runs r ON r.id = rs.run
JOIN product_versions v ON v.id = rs.version
LEFT JOIN publications live ON live.shot = s.id AND live.superseded_at IS NULL
WHERE s.sku = ANY(CAST(:skus AS text[]))
ORDER BY r.started_at DESC, s.scene, s.channel, v.photo_number LIMIT :limit OFFSET :offset
"""  # noqa: S608  # no value from outside
