"""What each channel shows now, and taking it back.

GET  /live                   the images that are shown, the newest first
POST /live/rollbacks         take back some of them, or all of a run
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import Field
from sqlalchemy import text

from packshot_console.guards import DECIDE
from packshot_console.pages import page as render
from packshot_console.photos import PHOTOS, photo_words
from packshot_console.requests import Body, Words, answer, may_decide, read_body
from packshot_console.services import ledger
from pipelines.ledger import decisions
from pipelines.ledger.shown import OF_SKU

PAGE_SIZE = 24

router = APIRouter(prefix="/live")


Number = Annotated[int, Field(ge=1, lt=2**63)]


class Rollback(Body):
    """Body of a rollback: numbers of publications, or a run."""

    publications: Annotated[list[Number], Field(max_length=PAGE_SIZE)] = []  # noqa: RUF012  # pydantic copies it
    run: Words = ""
    reason: Words = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """An image that is shown, and the file that its shot showed before, if there was one. It is of photo `photo_number`
    of its product's `photos`, None where there is one."""

    id: int
    sku: str
    title: str
    scene: str
    channel: str
    run: str
    digest: str
    published_at: datetime
    before: str | None
    photo_number: int
    photos: int | None

    @property
    def photo(self) -> str:
        """Which of its product's photos it is of, "" where there is one."""
        return photo_words(self.photo_number, self.photos)


@dataclass(frozen=True, slots=True)
class LiveView:
    """The page: `images` are those of this page, of `count` in all. The other fields say what it is narrowed to."""

    images: tuple[Shown, ...]
    count: int
    page: int
    pages: int
    scenes: tuple[tuple[str, str, int], ...]
    scene: str
    channel: str
    run: str
    sku: str


Name = Annotated[str, Query(max_length=300)]


@router.get("")
def live_page(
    request: Request,
    user: GetUserDep,
    scene: Name = "",
    channel: Name = "",
    run: Name = "",
    sku: Name = "",
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> Response:
    """The page."""
    return render(request, "live.html", view=live(scene, channel, run, sku.strip(), page), may_decide=may_decide(user))


def live(scene: str, channel: str, run: str, sku: str, page: int) -> LiveView:
    """What the page shows, in two queries."""
    chosen = {"scene": scene, "channel": channel, "run": run, "sku": sku}
    with ledger().engine.connect() as connection:
        counted = connection.execute(text(_COUNTED), chosen).all()
        rows = connection.execute(text(_IMAGES), {**chosen, "limit": PAGE_SIZE, "offset": (page - 1) * PAGE_SIZE}).all()
    count = sum(row.chosen for row in counted)
    return LiveView(
        images=tuple(Shown(**row._asdict()) for row in rows),
        count=count,
        page=page,
        pages=max(1, -(-count // PAGE_SIZE)),
        scenes=tuple((row.channel, row.scene, row.images) for row in counted),
        scene=scene,
        channel=channel,
        run=run,
        sku=sku,
    )


@router.post("/rollbacks", dependencies=DECIDE)
async def roll_back(request: Request, user: GetUserDep) -> Response:
    """Take images back; the answer has their number and the batch of rejections."""
    body = await read_body(request, Rollback)

    def act() -> dict[str, Any]:
        batch = secrets.token_hex(8)
        count = decisions.roll_back(ledger().engine, user.get_name(), body.reason, batch, body.publications, body.run)
        return {"batch": batch, "count": count}

    return await run_in_threadpool(answer, act)


_COUNTED = f"""
SELECT s.channel, s.scene, count(*) AS images,
       count(*) FILTER (WHERE (CAST(:scene AS text) = '' OR s.scene = :scene)
                          AND (CAST(:channel AS text) = '' OR s.channel = :channel)
                          AND (CAST(:run AS text) = '' OR p.run = :run)
                          AND (CAST(:sku AS text) = '' OR {OF_SKU})) AS chosen
FROM publications p JOIN shots s ON s.id = p.shot
WHERE p.superseded_at IS NULL GROUP BY s.channel, s.scene ORDER BY s.channel, s.scene
"""  # noqa: S608  # no value from outside

# The page is chosen before anything is looked up for its images.
_IMAGES = f"""
SELECT chosen.id, chosen.sku, v.title, chosen.scene, chosen.channel, chosen.run, chosen.digest, chosen.published_at,
       (SELECT b.digest FROM publications b
        WHERE b.shot = chosen.shot AND b.id < chosen.id AND b.digest <> chosen.digest AND b.withdrawn_by IS NULL
        ORDER BY b.id DESC LIMIT 1) AS before, v.photo_number, {PHOTOS} AS photos
FROM (
    SELECT p.*, s.sku, s.scene, s.channel FROM publications p JOIN shots s ON s.id = p.shot
    WHERE p.superseded_at IS NULL
      AND (CAST(:scene AS text) = '' OR s.scene = :scene) AND (CAST(:channel AS text) = '' OR s.channel = :channel)
      AND (CAST(:run AS text) = '' OR p.run = :run) AND (CAST(:sku AS text) = '' OR {OF_SKU})
    ORDER BY p.published_at DESC, p.id DESC LIMIT :limit OFFSET :offset
) chosen
JOIN products pr ON pr.sku = chosen.sku
JOIN product_versions v ON v.id = pr.version
ORDER BY chosen.published_at DESC, chosen.id DESC
"""  # noqa: S608  # no value from outside
