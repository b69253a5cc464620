"""Decide what a run works on: which products, in which scene, cut into shards. No pixel is touched."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from operators.base import (
    PROBLEM,
    TRIGGERED_BY,
    PackshotOperator,
    Services,
    listed,
    one_line,
    open_services,
    refuse_unknown,
)
from operators.policy import TICK
from pipelines.contracts import Reprocess
from pipelines.errors import UsageError

if TYPE_CHECKING:
    from airflow.sdk import Context

    from pipelines.contracts import Product, Shot
    from pipelines.scenes import Scene

MANIFEST = re.compile(r"[0-9a-f]{64}")
MAX_SHARDS = 1024
"""Airflow refuses to map over a longer list ([core] max_map_length)."""

FEED_SUFFIXES = (".csv", ".tsv", ".txt")
"""Files that a run may be told to read as its feed."""

FORECAST = "forecast"
"""XCom key of a dry run's outcome."""

WHO = "{{ params.get('" + TRIGGERED_BY + "') or dag_run.triggering_user_name or dag_run.run_type.value }}"
"""Template: what a caller of the API says of itself (`packshot run` does), else who started the run."""

NO_SCENE = (
    f"no scene was chosen: start it again and choose one; Airflow's Backfill dialog sends the form only where '{TICK}' "
    "is ticked"
)


class PlanOperator(PackshotOperator):
    """Open the run in the ledger, select its shots, cut shards; returns the list of shard numbers to map over.

    Lists arrive as JSON from a template, because a rendered template is text; numbers and flags as their text.

    Where it fails, the run is in the ledger too, as failed and with the reason: `packshot report` and the run's page
    tell it.

    :param scene: the scene's name.
    :param categories: product categories to keep: a whole category, or the beginning of its path. All when empty.
    :param skus: SKUs to keep. All when empty.
    :param limit: at most that many products, in feed order.
    :param reprocess: `missing` walks every selected shot and reuses its finished steps; `failed` selects those whose
        last outcome was failed, rejected or held, and computes them anew; `all` computes everything anew.
    :param forecast_only: count what would be computed and reused, and select nothing: a dry run.
    :param triggered_by: who or what asked for the run.
    """

    template_fields: Sequence[str] = (
        "run",
        "scene",
        "categories",
        "skus",
        "limit",
        "reprocess",
        "forecast_only",
        "triggered_by",
    )
    ui_color = "#f4ecd8"

    def __init__(
        self,
        *,
        scene: str = "{{ params.scene or '' }}",
        categories: Sequence[str] | str = "{{ params.categories | tojson }}",
        skus: Sequence[str] | str = "{{ params.skus | tojson }}",
        limit: int | str | None = "{{ params.limit or '' }}",
        reprocess: str = "{{ params.reprocess }}",
        forecast_only: bool | str = False,
        triggered_by: str = WHO,
        execution_timeout: timedelta | None = timedelta(hours=1),
        **kwargs: Any,
    ) -> None:
        super().__init__(execution_timeout=execution_timeout, **kwargs)
        self.scene = scene
        self.categories = categories
        self.skus = skus
        self.limit = limit
        self.reprocess = reprocess
        self.forecast_only = forecast_only
        self.triggered_by = triggered_by

    @abstractmethod
    def products(self, services: Services) -> tuple[str, list[Product]]:
        """Digest of the feed's manifest ("" where there is none) and the products to choose from, in feed order."""

    def execute(self, context: Context) -> list[int]:
        """Plan the run. Raises UsageError where a parameter or the feed is wrong."""
        services = open_services()
        try:
            refuse_unknown(context["dag"], context["dag_run"])
            return self._plan(services, context)
        except Exception as error:  # a retry that succeeds opens the run again
            self._tell(services, context, one_line(error))
            raise

    def _tell(self, services: Services, context: Context, reason: str) -> None:
        """Keep the reason why nothing can be made: with the run, and for its summary."""
        from pipelines.ledger.reports import is_planned

        if not is_planned(services.ledger.engine, self.run):  # else its plan was cleared: what it made is kept
            dag_id, params = context["dag"].dag_id, dict(context["params"])
            services.ledger.start_run(self.run, dag_id, self.scene, "", params=params, triggered_by=self.triggered_by)
        services.ledger.finish_run(self.run, "failed", {"reason": reason})
        context["ti"].xcom_push(key=PROBLEM, value={"reason": reason})

    def _plan(self, services: Services, context: Context) -> list[int]:
        from pipelines.contracts import Shot
        from pipelines.scenes import load_scene

        if not self.scene:
            raise UsageError(NO_SCENE)
        scene = load_scene(self.scene)
        feed, products = self.products(services)
        products = choose(products, listed(self.categories), listed(self.skus))
        if self.reprocess == Reprocess.FAILED:
            products = self._unfinished(services, scene, products)
        shots = [Shot(product, scene.name, scene.channel.name) for product in products[: _number(self.limit)]]

        forecast = self._forecast(services, shots) if str(self.forecast_only) == "True" else None
        services.ledger.record_scene(scene.name, scene.model_dump(mode="json"))
        services.ledger.start_run(
            self.run,
            context["dag"].dag_id,
            scene.name,
            scene.channel.name,
            feed=feed,
            params=dict(context["params"]) | ({FORECAST: forecast} if forecast else {}),
            triggered_by=self.triggered_by,
        )
        if forecast is not None:
            context["ti"].xcom_push(key=FORECAST, value=forecast)
            self.log.info("dry run", **{name: forecast[name] for name in ("shots", "reused", "seconds_expected")})
            shots = []
        size = max(services.settings.shard_size, -(-len(shots) // MAX_SHARDS))
        shards = services.ledger.select(self.run, shots, size)
        self.log.info("planned", scene=scene.name, shots=len(shots), shards=shards, shard_size=size)
        return list(range(shards))

    def _unfinished(self, services: Services, scene: Scene, products: Sequence[Product]) -> list[Product]:
        """The products whose shot did not end as an image in the last run that it was in."""
        from pipelines.contracts import ShotState

        skus = [product.sku for product in products]
        # a run that is planned again selects what it selected: its own outcomes do not count
        outcomes = services.ledger.last_outcomes(scene.name, scene.channel.name, skus, before=self.run)
        again = {ShotState.FAILED, ShotState.REJECTED, ShotState.HELD}
        return [product for product in products if outcomes.get(product.sku) in again]

    def _forecast(self, services: Services, shots: Sequence[Shot]) -> dict[str, Any]:
        """How many shots, how many of their steps are there already, and how long the rest takes at measured rates."""
        from pipelines.contracts import STAGES
        from pipelines.runs.forecast import forecast
        from pipelines.stages import stage

        recipe = services.recipe(self.scene, self.reprocess, self.run)
        stages = [stage(name) for name in STAGES]
        return asdict(forecast(stages, shots, recipe, services.ledger, services.ledger.rates()))


class PlanRefreshOperator(PlanOperator):
    """Plan a refresh of a feed: read it, bring the product table up to it, select.

    :param feed: digest of a manifest in the store, as `packshot run` puts it there; or a file or an http(s) address
        that this worker can read; or nothing, which means the feed that was named last, read again.
    """

    template_fields: Sequence[str] = ("feed", *PlanOperator.template_fields)

    def __init__(self, *, feed: str = "{{ params.feed or '' }}", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.feed = feed

    def products(self, services: Services) -> tuple[str, list[Product]]:
        """Read the feed and upsert its products."""
        from pipelines.catalogue.feed import ingest, load_manifest

        digest = self.feed.strip() or self._feed_named_last(services)
        if not MANIFEST.fullmatch(digest):
            source = digest if "://" in digest else _feed_file(digest)
            digest = ingest(source, services.store, services.settings)
        products = load_manifest(services.store, digest)
        changes = services.ledger.upsert_products(products)
        self.log.info("feed", manifest=digest, products=len(products), **asdict(changes))
        return digest, products

    def _feed_named_last(self, services: Services) -> str:
        from pipelines.ledger.reports import feed_for

        feed = feed_for(services.ledger.engine, self.run)
        if not feed:
            raise UsageError("no whole feed was named yet: name one, or start with `packshot run CATALOG --scene S`")
        return feed


class PlanCampaignOperator(PlanOperator):
    """Plan a campaign's run from the products that the ledger knows.

    :param day: `YYYY-MM-DD`: products that were new or changed on that day (UTC). Empty: whenever they changed. With
        `skus`, those, whenever they changed.
    """

    template_fields: Sequence[str] = ("day", *PlanOperator.template_fields)

    def __init__(self, *, day: str = "{{ dag_run.partition_key or '' }}", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.day = day

    def products(self, services: Services) -> tuple[str, list[Product]]:
        """Ask the ledger."""
        start, end = window(self.day)
        return "", services.ledger.products_changed_between(start, end, skus=listed(self.skus))


def _feed_file(name: str) -> Path:
    """A feed's path on this worker. Whoever may start a run names it: no other kind of file is read for them."""
    if Path(name).suffix.lower() not in FEED_SUFFIXES:
        raise UsageError(f"feed {name!r} is neither a manifest's digest nor a file in {', '.join(FEED_SUFFIXES)}")
    return Path(name)


def window(day: str) -> tuple[datetime, datetime]:
    """The day's beginning and end in UTC; all time where there is no day."""
    if not day:
        return datetime(1970, 1, 1, tzinfo=UTC), datetime.now(UTC) + timedelta(days=1)
    try:
        start = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as error:
        raise UsageError(f"partition {day!r} is no day of the form YYYY-MM-DD") from error
    return start, start + timedelta(days=1)


def choose(products: Iterable[Product], categories: Sequence[str], skus: Sequence[str]) -> list[Product]:
    """The products of these categories (a category holds those below it: `Home` holds `Home > Kitchen`) and SKUs."""
    from pipelines.catalogue.feed import within

    wanted = set(skus)
    return [
        product
        for product in products
        if (not wanted or product.sku in wanted)
        and (not categories or any(within(product.category, category) for category in categories))
    ]


def _number(value: int | str | None) -> int | None:
    return int(value) if value not in (None, "", "None") else None
