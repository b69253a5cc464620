"""The campaign page: a scene for products that are known already, counted before it is started.

GET  /campaign                     the page
GET  /campaign/scenes/{scene}      a scene's preview picture
POST /campaign/forecasts           what a campaign would make, reuse and take
POST /campaign/starts              start it
GET  /campaign/started/{run}       waits until the run is planned, then leads to its page
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, RedirectResponse
from pydantic import Field
from sqlalchemy import Connection, text

from packshot_console import airflow_runs
from packshot_console.guards import START
from packshot_console.pages import page, path_of
from packshot_console.requests import Body, Words, may_cancel, may_start, read_body, reply
from packshot_console.services import ledger, store
from pipelines.catalogue.feed import within
from pipelines.contracts import Shot
from pipelines.errors import UsageError
from pipelines.models.profile import load_profile
from pipelines.revisions.registry import install
from pipelines.runs.cost import cost
from pipelines.runs.forecast import Part, forecast
from pipelines.scenes import Scene, check_scene, load_scene, picture_of, scene_files, scene_titles
from pipelines.scenes.channels import channel_files
from pipelines.settings import get_settings
from pipelines.stages.keys import STAGES
from pipelines.vision.credentials import find_credentials
from pipelines.workflow import Recipe

FOLLOWED = 2000
"""Shots whose steps a forecast looks up, over all channels. The figures of a larger campaign are in proportion."""

MOST_DAYS = 366
NAMED = 5
"""Unknown SKUs that a refusal names."""

NOTHING = "no product of the catalogue is in this choice"

router = APIRouter(prefix="/campaign")


class Wanted(Body):
    """Body of a forecast and of a start: SKUs, or a category, or all; days as YYYY-MM-DD, or none."""

    scene: Words
    channels: Annotated[list[Words], Field(max_length=100)] = []  # noqa: RUF012  # pydantic copies it
    category: Words = ""
    skus: Annotated[list[Words], Field(max_length=1000)] = []  # noqa: RUF012  # pydantic copies it
    first: Words = ""
    last: Words = ""


@dataclass(frozen=True, slots=True)
class Scope:
    """What was chosen, checked. `scenes` is the scene for each channel; `channels` is empty for the scene's own. `days`
    are the first and the last one; None where the products' days do not matter."""

    scenes: tuple[Scene, ...]
    channels: tuple[str, ...]
    category: str
    skus: tuple[str, ...]
    days: tuple[date, date] | None

    def conf(self) -> dict[str, Any]:
        """Parameters of `campaign_backfill`."""
        return {
            "scene": self.scenes[0].name,
            **({"channels": list(self.channels)} if self.channels else {}),
            "categories": [self.category] if self.category else [],
            "skus": list(self.skus),
        }


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a campaign would make. `reused` and `computed` count steps; `seconds` are of one worker. `cost` is that of
    the seconds, "" without a price.

    Where `followed` is less than `products`, the other figures are in proportion. `unmeasured` names stages without a
    measured rate, which `seconds` omit.
    """

    products: int
    runs: int
    followed: int
    reused: int
    computed: int
    seconds: float
    cost: str
    unmeasured: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SceneChoice:
    """One scene to choose; `has_picture` says whether it has a preview."""

    name: str
    title: str
    has_picture: bool


@router.get("")
def campaign_page(request: Request, user: GetUserDep) -> Response:
    """The page."""
    with ledger().engine.connect() as connection:
        categories = connection.execute(text(_CATEGORIES)).tuples().all()
    return page(
        request,
        "campaign.html",
        scenes=[SceneChoice(name, title, _picture(name) is not None) for name, title in scene_titles().items()],
        channels=list(channel_files()),
        categories=categories,
        products=sum(count for _, count in categories),
        today=datetime.now(UTC).date().isoformat(),
        may_start=may_start(user),
    )


@router.get("/scenes/{scene}")
def scene_picture(scene: str) -> Response:
    """A scene's preview."""
    file = _picture(scene)
    if file is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, "there is no such picture")
    return FileResponse(file, headers={"Cache-Control": "private, max-age=300"})


@router.post("/forecasts", dependencies=START)
async def foresee(request: Request) -> Response:
    """What the campaign would make. 409 with a sentence where it cannot be."""
    body = await read_body(request, Wanted)
    return await run_in_threadpool(reply, lambda: outlook(scope_of(body)))


@router.post("/starts", dependencies=START)
async def start(request: Request, user: GetUserDep) -> Response:
    """Start the campaign; answers the id of its (first) run, and the path of the page that follows it."""
    body = await read_body(request, Wanted)

    def act() -> dict[str, Any]:
        scope = scope_of(body)
        if _first_products(scope, 1)[0] == 0:
            raise UsageError(NOTHING)
        conf, by = scope.conf(), user.get_name()
        run = airflow_runs.start_days(conf, *scope.days, by) if scope.days else airflow_runs.start_run(conf, by)
        return {"run": run, "page": path_of(request, "started", run=run)}

    return await run_in_threadpool(reply, act)


@router.get("/started/{run}")
def started(request: Request, user: GetUserDep, run: str) -> Response:
    """Leads to the run's page as soon as the ledger has the run."""
    with ledger().engine.connect() as connection:
        if connection.scalar(text("SELECT 1 FROM runs WHERE id = :run"), {"run": run}):
            return RedirectResponse(path_of(request, "run_page", run=run), HTTPStatus.SEE_OTHER)
    state = airflow_runs.state_of(run)
    if state is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, "Airflow knows no such campaign")
    return page(request, "campaign_started.html", run=run, state=state, may_cancel=may_cancel(user))


def scope_of(wanted: Wanted) -> Scope:
    """Check what was asked for. Raises UsageError with one sentence for whoever chose it."""
    if not wanted.scene:
        raise UsageError("choose a scene")
    channels = tuple(dict.fromkeys(name for name in wanted.channels if name))
    scenes = tuple(load_scene(wanted.scene, channel=name) for name in channels or ("",))
    skus = tuple(dict.fromkeys(sku.strip() for sku in wanted.skus if sku.strip()))
    days = _days(wanted.first, wanted.last)
    if skus and wanted.category:
        raise UsageError("choose a category or SKUs, not both")
    if skus and days:
        raise UsageError("choose days or SKUs, not both: named products are made whenever they changed")
    if skus:
        with ledger().engine.connect() as connection:
            unknown = connection.execute(text(_UNKNOWN), {"skus": list(skus)}).scalars().all()
        if unknown:
            more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
            raise UsageError(f"the catalogue has no product with SKU {', '.join(unknown[:NAMED])}{more}")
    return Scope(scenes, channels, wanted.category.strip(), skus, days)


def outlook(scope: Scope) -> Outlook:
    """Count a campaign's products and follow the first of them through the stages; nothing is computed."""
    products, skus = _first_products(scope, max(1, FOLLOWED // len(scope.scenes)))
    if not products:
        raise UsageError(NOTHING)
    now = datetime.now(UTC)
    chosen = ledger().products_changed_between(now, now, skus=skus)  # named products, whenever they changed
    chosen = [one for one in chosen if one.photo_number <= 1 + scope.scenes[0].additional_photos]
    settings = get_settings()
    install(ledger().engine, store(), settings.profile, settings.state_dir)
    profile = load_profile(settings.profile, settings.models_dir)
    from pipelines.vision.reader import find_reader  # imports OpenCV

    credentials = find_credentials(settings)
    parts = [
        Part(
            Recipe(
                profile,
                scene,
                max_megapixels=settings.photo_max_megapixels,
                credentials=credentials,
                reader=find_reader(scene.checks.read_text, settings),
            ),
            [Shot(product, scene.name, scene.channel.name) for product in chosen],
        )
        for scene in scope.scenes
    ]
    found = forecast(list(STAGES.values()), parts, ledger(), ledger().rates())
    scale = products / len(skus)
    seconds = found.seconds_expected * scale
    return Outlook(
        products=products,
        runs=len(parts) * ((scope.days[1] - scope.days[0]).days + 1 if scope.days else 1),
        followed=len(skus),
        reused=round(found.reused * scale),
        computed=round(sum(found.computed_by_stage.values()) * scale),
        seconds=round(seconds, 1),
        cost=cost(seconds, settings),
        unmeasured=found.unmeasured,
    )


def _days(first: str, last: str) -> tuple[date, date] | None:
    if not first and not last:
        return None
    try:
        days = date.fromisoformat(first or last), date.fromisoformat(last or first)
    except ValueError:
        raise UsageError("a day has the form YYYY-MM-DD") from None
    today = datetime.now(UTC).date()
    if max(days) > today:
        raise UsageError(f"{max(days)} is in the future (it is {today} in UTC): its products are not known yet")
    if days[0] > days[1]:
        raise UsageError(f"the range ends ({days[1]}) before it begins ({days[0]})")
    if (days[1] - days[0]).days >= MOST_DAYS:
        raise UsageError(f"a campaign has at most {MOST_DAYS} days")
    return days


def _first_products(scope: Scope, most: int) -> tuple[int, list[str]]:
    """How many products the scope has, and the SKUs of the first, in feed order."""
    with ledger().engine.connect() as connection:
        values = {
            "every": not scope.category,
            "categories": _below(connection, scope.category) if scope.category else [],
            "skus": list(scope.skus),
            "start": datetime.combine(scope.days[0], time(), UTC) if scope.days else None,
            "end": datetime.combine(scope.days[1], time(), UTC) + timedelta(days=1) if scope.days else None,
        }
        count = connection.scalar(text(f"SELECT count(*) {_CHOSEN}"), values)
        first = text(f"SELECT p.sku {_CHOSEN} ORDER BY p.row, p.sku LIMIT :most")
        return int(count or 0), list(connection.execute(first, {**values, "most": most}).scalars())


def _below(connection: Connection, category: str) -> list[str]:
    """The categories of products that are this one or below it, as a run's plan takes them."""
    return [name for name, _ in connection.execute(text(_CATEGORIES)).tuples() if within(name, category)]


def _picture(scene: str) -> Path | None:
    """The scene's preview; None where there is none, or where the file cannot be read."""
    file = scene_files().get(scene)
    return _picture_of(file, file.stat().st_mtime_ns) if file else None


@lru_cache(maxsize=1024)
def _picture_of(file: Path, mtime_ns: int) -> Path | None:
    try:
        return picture_of(check_scene(file))
    except UsageError:  # whoever chooses this scene is told what is wrong with it
        return None


_CATEGORIES = """
SELECT v.category, count(*) FROM products p JOIN product_versions v ON v.id = p.version
WHERE p.left_at IS NULL AND v.photo_of = '' GROUP BY v.category ORDER BY v.category
"""

_UNKNOWN = """
SELECT asked.sku FROM unnest(CAST(:skus AS text[])) WITH ORDINALITY AS asked(sku, n)
WHERE NOT EXISTS (SELECT FROM products p WHERE p.sku = asked.sku AND p.left_at IS NULL) ORDER BY asked.n
"""

_CHOSEN = """
FROM products p JOIN product_versions v ON v.id = p.version
WHERE p.left_at IS NULL AND v.photo_of = '' AND (:every OR v.category = ANY(CAST(:categories AS text[])))
  AND (cardinality(CAST(:skus AS text[])) = 0 OR p.sku = ANY(CAST(:skus AS text[])))
  AND (CAST(:start AS timestamptz) IS NULL OR EXISTS (
    SELECT FROM product_versions t WHERE t.sku = p.sku AND t.changed_at >= :start AND t.changed_at < :end))
"""
