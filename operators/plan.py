"""Decide what a run works on: which products, in which scene, cut into shards. No pixel is touched."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from more_itertools import chunked

from operators.base import (
    CHANNELS,
    DAY,
    GROUP,
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
from operators.waves import is_taken_over
from pipelines.contracts import FURTHER, Reprocess, canonical_json, sha256_hex
from pipelines.errors import UsageError

if TYPE_CHECKING:
    from airflow.sdk import Context

    from pipelines.catalogue.manifest import Line
    from pipelines.scenes import Scene
    from pipelines.workflow import Recipe

MANIFEST = re.compile(r"[0-9a-f]{64}")
FEED_SUFFIXES = (".csv", ".tsv", ".txt", ".xml")
"""Files that a run may be told to read as its feed."""

FORECAST = "forecast"
"""XCom key of a dry run's outcome."""

WHO = "{{ params.get('" + TRIGGERED_BY + "') or dag_run.triggering_user_name or dag_run.run_type.value }}"
"""Template: what a caller of the API says of itself (`packshot run` does), else who started the run."""

DAY_OF_RUN = "{{ params.get('" + DAY + "') or dag_run.partition_key or '' }}"
"""Template: the day of a campaign's run; empty where it has none."""

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
    :param channels: names of channels. The run is for the first, and a dry run counts all. The scene's own when empty.
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
        "channels",
        "categories",
        "skus",
        "limit",
        "reprocess",
        "forecast_only",
        "triggered_by",
    )
    ui_color = "#f4ecd8"

    in_waves = False
    """Whether a run that finds more work than it takes leaves the rest to a run after it."""

    def __init__(
        self,
        *,
        scene: str = "{{ params.scene or '' }}",
        channels: Sequence[str] | str = CHANNELS,
        categories: Sequence[str] | str = "{{ params.categories | tojson }}",
        skus: Sequence[str] | str = "{{ params.skus | tojson }}",
        limit: int | str | None = "{{ params.limit or '' }}",
        reprocess: str = "{{ params.reprocess }}",
        forecast_only: bool | str = False,
        triggered_by: str = WHO,
        execution_timeout: timedelta | None = timedelta(hours=6),
        **kwargs: Any,
    ) -> None:
        super().__init__(execution_timeout=execution_timeout, **kwargs)
        self.scene = scene
        self.channels = channels
        self.categories = categories
        self.skus = skus
        self.limit = limit
        self.reprocess = reprocess
        self.forecast_only = forecast_only
        self.triggered_by = triggered_by

    @abstractmethod
    def lines(self, services: Services, since: datetime | None) -> tuple[str, Iterable[Line]]:
        """Digest of the feed's manifest ("" where there is none) and the products to choose from, in feed order.

        Photos that were fetched after `since`, by an earlier try of this run, are not fetched again.
        """

    def line(self, dag_id: str, scene: Scene) -> str:
        """Name of the runs that select as this one does: each records only how it differs from the one before it."""
        asked = [dag_id, scene.name, scene.channel.name, listed(self.categories), listed(self.skus)]
        return sha256_hex(canonical_json([*asked, _number(self.limit)]).encode())[:16]

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
        from pipelines.ledger.waves import cancelled_before
        from pipelines.scenes import load_scene

        if not self.scene:
            raise UsageError(NO_SCENE)
        # every channel's, so that a later one is not found to be wrong when the first is made
        scenes = {name: load_scene(self.scene, channel=name) for name in listed(self.channels) or [""]}
        channel, scene = next(iter(scenes.items()))
        group = str((context["dag_run"].conf or {}).get(GROUP) or "")
        if before := cancelled_before(services.ledger.engine, self.run, group, channel):
            raise UsageError(f"run {before} was cancelled, and this one comes after it: start it again if it is wanted")
        self._check_signing(services)
        feed, known = self.lines(services, getattr(context["dag_run"], "start_date", None))
        lines = self._selected(services, scene, known)

        forecast = None
        if str(self.forecast_only) == "True":
            forecast, lines = self._forecast(services, scenes, list(known)), iter(())
        dag_id = context["dag"].dag_id
        services.ledger.record_scene(scene.name, scene.model_dump(mode="json"))
        services.ledger.start_run(
            self.run,
            dag_id,
            scene.name,
            scene.channel.name,
            feed=feed,
            params=dict(context["params"]) | ({FORECAST: forecast} if forecast else {}),
            triggered_by=self.triggered_by,
        )
        if forecast is not None:
            context["ti"].xcom_push(key=FORECAST, value=forecast)
            self.log.info("dry run", **{name: forecast[name] for name in ("shots", "reused", "seconds_expected")})
        line = "" if forecast else self.line(dag_id, scene)
        recipe = services.recipe(self.scene, self.reprocess, self.run, channel)
        return list(range(self._cut(services, lines, scene, line, recipe)))

    def _selected(self, services: Services, scene: Scene, lines: Iterable[Line]) -> Iterator[Line]:
        """What the run works on of the products to choose from, with the photos that the scene asks for."""
        from pipelines.catalogue.additional import first_products, with_photos

        lines = with_photos(choose(lines, listed(self.categories), listed(self.skus)), scene.additional_photos)
        if self.reprocess == Reprocess.FAILED:
            lines = self._unfinished(services, scene, lines)
        return first_products(lines, _number(self.limit))

    def _check_signing(self, services: Services) -> None:
        """Raise UsageError now where published files are to be signed and cannot be."""
        from pipelines.vision.credentials import Signer, find_credentials

        credentials = find_credentials(services.settings)
        if credentials is not None:
            Signer(credentials)

    def _cut(self, services: Services, lines: Iterable[Line], scene: Scene, line: str, recipe: Recipe) -> int:
        """Select, find what needs a stage, and put that into shards; returns their number."""
        from pipelines.ledger.waves import wave_of
        from pipelines.runs.planning import find_work, most_shots, shard_size, usual_size
        from pipelines.stages.keys import STAGES, fingerprint

        ledger = services.ledger
        if self.reprocess == Reprocess.FAILED:
            line = ""  # a selection of its own: no later run builds on it
        selected = ledger.refresh(
            self.run, lines, scene.name, scene.channel.name, line, fingerprint(recipe), forced=bool(recipe.attempt)
        )
        work = find_work(self.run, [stage for stage in STAGES.values() if stage.name != "publish"], recipe, ledger)
        rates, slots, fixed = ledger.rates(), services.settings.gpu_slots, services.settings.shard_size
        left = 0
        if self.in_waves and line and not recipe.attempt:
            most = most_shots(wave_of(self.run), len(work), usual_size(rates, fixed), slots)
            left = ledger.put_off(self.run, work[most:]) if most < len(work) else 0
            work = work[: len(work) - left]
        size = shard_size(len(work), rates, slots, fixed)
        shards = ledger.cut_shards(self.run, work, size)
        self.log.info(
            "planned",
            scene=scene.name,
            unchanged=selected.unchanged,
            reused=selected.shots - len(work) - left,
            to_compute=len(work),
            left_to_the_next_wave=left,
            shards=shards,
            shard_size=size,
        )
        return shards

    def _unfinished(self, services: Services, scene: Scene, lines: Iterable[Line]) -> Iterator[Line]:
        """The products whose shot did not end as an image in the last run that it was in."""
        from pipelines.contracts import ShotState

        again = {ShotState.FAILED, ShotState.REJECTED, ShotState.HELD}
        for chunk in chunked(lines, 1000):
            skus = [line.sku for line in chunk]
            # a run that is planned again selects what it selected: its own outcomes do not count
            outcomes = services.ledger.last_outcomes(scene.name, scene.channel.name, skus, before=self.run)
            yield from (line for line in chunk if outcomes.get(line.sku) in again)

    def _forecast(self, services: Services, scenes: Mapping[str, Scene], lines: Sequence[Line]) -> dict[str, Any]:
        """How many shots, how many of their steps are there already, and how long the rest takes at measured rates."""
        from pipelines.contracts import Shot
        from pipelines.runs.forecast import Part, forecast
        from pipelines.stages.keys import STAGES

        parts = [
            Part(
                services.recipe(self.scene, self.reprocess, self.run, channel),
                (Shot(o.product, scene.name, scene.channel.name) for o in self._selected(services, scene, lines)),
            )
            for channel, scene in scenes.items()
        ]
        return asdict(forecast(list(STAGES.values()), parts, services.ledger, services.ledger.rates()))


class PlanRefreshOperator(PlanOperator):
    """Plan a refresh of a feed: read it, bring the product table up to it, select.

    :param feed: digest of a manifest in the store, as `packshot run` puts it there; or a file or an http(s) address
        that this worker can read; or nothing, which means the feed that was named last, read again.
    :param accept_loss: take the feed even if it lost more than a fifth of its products since it was read last.
    """

    template_fields: Sequence[str] = ("feed", "accept_loss", *PlanOperator.template_fields)
    in_waves = True

    def __init__(
        self,
        *,
        feed: str = "{{ params.feed or '' }}",
        accept_loss: bool | str = "{{ params.get('accept_loss') or False }}",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.feed = feed
        self.accept_loss = accept_loss

    def lines(self, services: Services, since: datetime | None) -> tuple[str, Iterable[Line]]:
        """Read the feed and upsert its products. A later wave goes on with what the first one read."""
        from pipelines.catalogue.feed import ingest
        from pipelines.catalogue.manifest import read_manifest
        from pipelines.ledger.photo_links import PhotoLinks
        from pipelines.ledger.waves import feeds_since, wave_before
        from pipelines.scenes import load_scene

        if before := wave_before(self.run):
            digest, _ = feeds_since(services.ledger.engine, before)
            if not digest:
                raise UsageError(f"run {self.run!r} is named as a wave after {before!r}, which read no feed")
            if is_taken_over(services, before):
                raise UsageError(f"a later run has read the feed of {before!r} anew, and does what that one left")
            return digest, read_manifest(services.store, digest)
        digest = self.feed.strip() or self._feed_named_last(services)
        if not MANIFEST.fullmatch(digest):
            source = digest if "://" in digest else _feed_file(digest)
            memory = PhotoLinks(services.ledger.engine, since)
            photos = load_scene(self.scene).additional_photos
            digest = ingest(source, services.store, services.settings, memory=memory, additional_photos=photos)
        elif self.run.startswith(FURTHER):  # the first channel's run has read it: a newer reading stays in force
            return digest, read_manifest(services.store, digest)
        manifest = read_manifest(services.store, digest)
        whole = "" if _number(self.limit) else manifest.source
        accepts = str(self.accept_loss) == "True"
        changes = services.ledger.upsert_products(
            manifest, feed=whole, accept_loss=accepts, additional_photos=manifest.additional_photos
        )
        self.log.info("feed", manifest=digest, encoding=manifest.encoding, **asdict(changes))
        asked = load_scene(self.scene).additional_photos
        if asked > manifest.additional_photos:
            self.log.warning(
                "the feed was read for a scene that asks for fewer additional photos: name the feed's file or address, "
                "or put it into the store again with `packshot run`",
                asked=asked,
                read=manifest.additional_photos,
            )
        return digest, manifest

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

    def __init__(self, *, day: str = DAY_OF_RUN, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.day = day

    def lines(self, services: Services, since: datetime | None) -> tuple[str, Iterable[Line]]:
        """Ask the ledger."""
        from pipelines.catalogue.manifest import Line

        start, end = window(self.day)
        return "", map(Line.of, services.ledger.products_changed_between(start, end, skus=listed(self.skus)))

    def line(self, dag_id: str, scene: Scene) -> str:
        """The runs of one day and scene."""
        return f"{super().line(dag_id, scene)} {self.day}"


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


def choose(lines: Iterable[Line], categories: Sequence[str], skus: Sequence[str]) -> Iterator[Line]:
    """The products of these categories (a category holds those below it: `Home` holds `Home > Kitchen`) and SKUs. A SKU
    holds its additional photos; the name of one means that photo alone."""
    from pipelines.catalogue.feed import within

    wanted = set(skus)
    for line in lines:
        if wanted and wanted.isdisjoint((line.sku, line.photo_of)):
            continue
        if not categories or any(within(line.product.category, category) for category in categories):
            yield line


def _number(value: int | str | None) -> int | None:
    return int(value) if value not in (None, "", "None") else None
