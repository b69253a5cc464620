"""`GET /packshot/metrics` for Prometheus: the business metrics, read from the ledger and kept for 15 seconds.

The route has a token of its own (PACKSHOT_METRICS_TOKEN), because Prometheus has no login in Airflow. Without that
setting there is no such route. Counters of Airflow's task processes would start at 0 with every task; the ledger
remembers.
"""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from functools import lru_cache
from http import HTTPStatus

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from packshot_console.services import ledger
from pipelines.ledger.metrics import LedgerMetrics, read_metrics
from pipelines.runs.cost import price_of
from pipelines.services.s3 import store_answers, store_client
from pipelines.settings import get_settings

KEPT_SECONDS = 15.0

METRICS = {
    "packshot_up": ("Whether a service answers: 1 or 0.", ("service",)),
    "packshot_probe_seconds": ("How long the service took to answer.", ("service",)),
    "packshot_images": ("Shots by the state that their last run left them in.", ("scene", "channel", "state")),
    "packshot_queue_images": ("Held images that wait for a person.", ()),
    "packshot_queue_age_seconds": ("How long the oldest of them has been waiting.", ()),
    "packshot_day_inspected": ("Shots that were inspected in the last 24 hours.", ("scene",)),
    "packshot_day_held": ("Of those, how many at least one check held.", ("scene",)),
    "packshot_day_held_by_check": ("Of those, how many this check held.", ("scene", "check")),
    "packshot_day_overcompletion_ratio": ("Of those, the share that grew the product (E+ above its threshold).", ()),
    "packshot_spot_checked": ("Spot checks that were answered in the last 90 days.", ("scene",)),
    "packshot_false_passes": ("Of those, how many images were wrong although they passed.", ("scene",)),
    "packshot_false_pass_ratio": (
        "Their share: the estimate, and the ends `low` and `high` of its 95 % Wilson interval.",
        ("scene", "bound"),
    ),
    "packshot_day_steps": ("Steps that were computed in the last 24 hours.", ("stage", "state")),
    "packshot_day_step_seconds": ("Seconds of computing in these steps.", ("stage",)),
    "packshot_image_seconds": (
        "Seconds of computing for an image that was published first, over the runs of the last 14 days that ended.",
        ("scene",),
    ),
    "packshot_image_cost": (
        "What these seconds cost, at PACKSHOT_GPU_HOUR_PRICE; absent without it.",
        ("scene", "currency"),
    ),
    "packshot_last_step_timestamp_seconds": ("When the last of these steps ended.", ()),
    "packshot_runs": ("Runs by state.", ("dag_id", "state")),
    "packshot_run_age_seconds": ("How long the oldest unfinished run has been running.", ()),
    "packshot_run_ended_timestamp_seconds": ("When the last run that ended so ended.", ("dag_id", "state")),
    "packshot_nightly_scheduled": ("Whether a nightly refresh is scheduled: 1 or 0.", ()),
    "packshot_nightly_timestamp_seconds": (
        "When the last nightly refresh succeeded; before the first, when the API server started.",
        (),
    ),
    "packshot_ledger_bytes": ("Size of the ledger's database.", ()),
    "packshot_disk_free_bytes": ("Free space on the disk of the state folder, as the API server sees it.", ()),
    "packshot_disk_size_bytes": ("Size of that disk.", ()),
}
"""Every metric: its meaning and its labels. All are gauges."""

_SINCE = time.time()


def endpoint(request: Request) -> Response:
    """The answer to a scrape: 404 without a token in the settings, 401 for another token than that."""
    token = get_settings().metrics_token.get_secret_value()
    if not token:
        return PlainTextResponse("not found", HTTPStatus.NOT_FOUND)
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if not secrets.compare_digest(given.encode(), token.encode()):
        return PlainTextResponse("wrong token", HTTPStatus.UNAUTHORIZED, {"WWW-Authenticate": "Bearer"})
    return Response(_exposition().text(), media_type=CONTENT_TYPE_LATEST)


class Exposition:
    """The text that Prometheus reads. It is made at most once in KEPT_SECONDS, however many ask."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(LedgerCollector())
        self._lock = threading.Lock()
        self._made, self._text = float("-inf"), b""

    def text(self) -> bytes:
        """Prometheus' text format."""
        with self._lock:
            if time.monotonic() - self._made > KEPT_SECONDS:
                self._text = generate_latest(self._registry)
                self._made = time.monotonic()
            return self._text


@lru_cache
def _exposition() -> Exposition:
    return Exposition()


class LedgerCollector(Collector):
    """All of METRICS. While the ledger does not answer there is `packshot_up` 0, and nothing else of it."""

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The metrics without values: registering them reads nothing."""
        for name, (meaning, labels) in METRICS.items():
            yield GaugeMetricFamily(name, meaning, labels=labels)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The metrics as of now."""
        families = {family.name: family for family in self.describe()}

        def add(name: str, value: float, *labels: str) -> None:
            families[name].add_metric(labels, value)

        settings = get_settings()
        disk = shutil.disk_usage(settings.state_dir)
        add("packshot_disk_free_bytes", disk.free)
        add("packshot_disk_size_bytes", disk.total)
        add("packshot_nightly_scheduled", bool(settings.nightly_schedule))

        began = time.monotonic()
        add("packshot_up", store_answers(store_client(settings), settings.s3_bucket), "store")
        add("packshot_probe_seconds", time.monotonic() - began, "store")

        began = time.monotonic()
        try:
            found = read_metrics(ledger().engine)
        except SQLAlchemyError:
            found = None
        add("packshot_up", found is not None, "ledger")
        add("packshot_probe_seconds", time.monotonic() - began, "ledger")
        if found is not None:
            for name, value, labels in _samples(found, time.time()):
                add(name, value, *labels)
            for made in found.image_seconds:
                add("packshot_image_seconds", made.seconds / made.images, made.scene)
                price = price_of(made.seconds / made.images, settings)
                if price is not None:
                    add("packshot_image_cost", price, made.scene, settings.currency)
        return iter(families.values())


def _samples(found: LedgerMetrics, now: float) -> Iterator[tuple[str, float, tuple[str, ...]]]:
    """Name, value and labels of every figure of the ledger."""
    for images in found.images:
        yield "packshot_images", images.count, (images.scene, images.channel, images.state)
    yield "packshot_queue_images", found.queue.images, ()
    yield "packshot_queue_age_seconds", now - found.queue.since.timestamp() if found.queue.since else 0, ()

    for checked in found.checked:
        if checked.check:
            yield "packshot_day_held_by_check", checked.held, (checked.scene, checked.check)
        else:
            yield "packshot_day_inspected", checked.inspected, (checked.scene,)
            yield "packshot_day_held", checked.held, (checked.scene,)
    inspected = sum(checked.inspected for checked in found.checked if not checked.check)
    if inspected:
        grown = sum(checked.held for checked in found.checked if checked.check == "overcompletion")
        yield "packshot_day_overcompletion_ratio", grown / inspected, ()

    for spot in found.false_passes:
        yield "packshot_spot_checked", spot.checked, (spot.scene,)
        yield "packshot_false_passes", spot.wrong, (spot.scene,)
        for bound, share in (("estimate", spot.rate), ("low", spot.low), ("high", spot.high)):
            yield "packshot_false_pass_ratio", share, (spot.scene, bound)

    for work in found.work:
        yield "packshot_day_steps", work.steps, (work.stage, work.state)
    for stage in sorted({work.stage for work in found.work}):
        yield "packshot_day_step_seconds", sum(work.seconds for work in found.work if work.stage == stage), (stage,)
    if found.work:
        yield "packshot_last_step_timestamp_seconds", max(work.newest for work in found.work).timestamp(), ()

    for dag_id, state in sorted({(runs.dag_id, runs.state) for runs in found.runs}):
        these = [runs for runs in found.runs if (runs.dag_id, runs.state) == (dag_id, state)]
        yield "packshot_runs", sum(runs.count for runs in these), (dag_id, state)
        ended = [runs.ended.timestamp() for runs in these if runs.ended]
        if ended and state != "running":
            yield "packshot_run_ended_timestamp_seconds", max(ended), (dag_id, state)
    began = [runs.oldest.timestamp() for runs in found.runs if runs.state == "running"]
    yield "packshot_run_age_seconds", now - min(began, default=now), ()
    nights = [runs.ended.timestamp() for runs in found.runs if runs.nightly and runs.state == "success" and runs.ended]
    yield "packshot_nightly_timestamp_seconds", max(nights, default=_SINCE), ()
    yield "packshot_ledger_bytes", found.bytes, ()
