"""A product's page: everything that was ever made of it, newest run first, with the steps that led to each image.

GET /products/{sku}
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request, Response
from sqlalchemy import text

from packshot_console.pages import page as render
from packshot_console.services import ledger
from packshot_console.walks import Walk, read_walks
from pipelines.ledger.decisions import Decision, decisions_about

PAGE_SIZE = 12

router = APIRouter()


@dataclass(frozen=True, slots=True)
class ProductImage:
    """What one run made of the product in one scene. `live` says that its image is shown now."""

    run: str
    scene: str
    channel: str
    started_at: datetime
    state: str
    reason: str
    live: bool
    decisions: tuple[Decision, ...]
    walk: Walk


@dataclass(frozen=True, slots=True)
class ProductView:
    """The page: `made` are those of this page, of `count` in all."""

    sku: str
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
    """What the page shows, in nine queries; None for a SKU that the ledger does not know."""
    values = {"sku": sku, "limit": PAGE_SIZE, "offset": (page - 1) * PAGE_SIZE}
    with ledger().engine.connect() as connection:
        about = connection.execute(text(_ABOUT), values).first()
        if about is None:
            return None
        rows = connection.execute(text(_MADE), values).all()
        walks = read_walks(connection, {(row.run, row.shot): row.photo for row in rows})
    decided = decisions_about(ledger().engine, sku)
    return ProductView(
        sku=sku,
        title=about.title,
        category=about.category,
        count=about.images,
        page=page,
        pages=max(1, -(-about.images // PAGE_SIZE)),
        made=tuple(
            ProductImage(
                run=row.run,
                scene=row.scene,
                channel=row.channel,
                started_at=row.started_at,
                state=row.state,
                reason=row.reason,
                live=walk.published is not None and walk.published == row.live,
                decisions=tuple(one for one in decided if row.final is not None and one.final == row.final),
                walk=walk,
            )
            for row in rows
            for walk in [walks[row.run, row.shot]]
        ),
    )


_ABOUT = """
SELECT v.title, v.category,
       (SELECT count(*) FROM shots s JOIN run_shots rs ON rs.shot = s.id WHERE s.sku = p.sku) AS images
FROM products p JOIN product_versions v ON v.id = p.version WHERE p.sku = :sku
"""

_MADE = """
SELECT rs.run, rs.shot, rs.state, rs.reason, rs.final, r.started_at, s.scene, s.channel, v.photo, live.digest AS live
FROM shots s
JOIN run_shots rs ON rs.shot = s.id
JOIN runs r ON r.id = rs.run
JOIN product_versions v ON v.id = rs.version
LEFT JOIN publications live ON live.shot = s.id AND live.superseded_at IS NULL
WHERE s.sku = :sku
ORDER BY r.started_at DESC, s.scene, s.channel LIMIT :limit OFFSET :offset
"""
