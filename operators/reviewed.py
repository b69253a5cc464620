"""What follows from people's decisions: approved images are published, and what is to be tried again is started."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

from operators.base import PackshotOperator, Services, open_services, start_run
from operators.tables import attach_feed, images_of, publication_columns

if TYPE_CHECKING:
    from airflow.sdk import Context

    from pipelines.ledger.decisions import Approved

DECISIONS = "packshot_decisions"
"""Name of the asset that the console and the command line report changes of: somebody decided about held images."""


GRACE_SECONDS = 10.0
"""How old a decision must be before something follows from it: a person may take the last ones back until then."""


class PublishApprovedOperator(PackshotOperator):
    """Publishes approved images, each in the run that held it.

    The decisions in the ledger are the truth; an event only starts this task. The task waits until nobody has decided
    anything for a while, so that a person who goes through a queue starts one run and not a hundred.

    :param grace_seconds: how old the newest decision must be. The task ends once it acted on all.
    """

    template_fields: Sequence[str] = ("run",)
    ui_color = "#e8f3e6"

    def __init__(
        self,
        *,
        grace_seconds: float = GRACE_SECONDS,
        execution_timeout: timedelta | None = timedelta(hours=1),
        **kwargs: Any,
    ) -> None:
        super().__init__(execution_timeout=execution_timeout, **kwargs)
        self.grace_seconds = grace_seconds

    def execute(self, context: Context) -> dict[str, Any]:
        """Publish every approved image; returns how many. Fails, at the end, if something kept it from one."""
        from pipelines.ledger.decisions import approved_images, seconds_since_last
        from pipelines.ledger.shown import feeds_behind

        services = open_services()
        tried: set[int] = set()
        problems: list[str] = []
        while (age := seconds_since_last(services.ledger.engine)) is not None:
            if age < self.grace_seconds:
                time.sleep(min(self.grace_seconds - age, 1.0))
                continue
            waiting = [one for one in approved_images(services.ledger.engine) if one.decision not in tried]
            if not waiting:
                break
            tried |= {one.decision for one in waiting}
            for run, images in groupby(waiting, key=lambda one: one.run):
                problems += self._publish(services, run, list(images))
        for behind in feeds_behind(services.ledger.engine):  # something was taken back since they were written
            attach_feed(services, behind)
        if problems:
            raise AirflowFailException("; ".join(problems))
        return {"images": len(tried)}

    def _publish(self, services: Services, run: str, images: Sequence[Approved]) -> list[str]:
        """Encodes, checks and shows the approved images of one run; returns what kept it from doing so.

        The feed of the run has them then, and that of the newest run that shows the run's images unchanged.
        """
        from pipelines.errors import UsageError
        from pipelines.ledger.reports import run_params
        from pipelines.quality.tables import validate
        from pipelines.stages import stage
        from pipelines.workflow import Limits, run_stage

        ledger, by_sku = services.ledger, {image.sku: image for image in images}
        shots = [shot for shot in ledger.shots(run, skus=sorted(by_sku)) if shot.sku in by_sku]
        reprocess = run_params(ledger.engine, run).get("reprocess", "missing")
        try:
            recipe = services.recipe(images[0].scene, reprocess, run, images[0].channel)
        except UsageError as error:  # the scene is gone
            self.log.error("not published", run=run, images=len(images), reason=str(error))
            return [f"{run}: {error}"]
        limits = Limits(services.settings.batch_size, services.settings.shot_seconds)
        run_stage(stage("publish"), run, shots, recipe, ledger, services.store, limits)
        steps = ledger.chosen(run, shots, ["publish"])
        refused = [
            f"{sku}: {found['publish'].reason}"
            for sku, found in steps.items()
            if "publish" in found and found["publish"].state == "rejected"
        ]
        if refused:  # no person's word changes a channel's rule
            ledger.settle(run)
            self.log.error("not published", run=run, images=len(refused), reason="; ".join(refused))
        rows = publication_columns(services, run, recipe.scene, sorted({image.final for image in images}))
        failures = [failure for failure in validate("publication", rows).failures if failure.critical]
        if failures:
            reason = "; ".join(f"{failure.reason}: {', '.join(failure.rows[:5])}" for failure in failures)
            self.log.error("not published", run=run, images=len(rows["key"]), reason=reason)
            return [f"{run}: {reason}"]
        shown = [image for image in images_of(rows) if image.sku in by_sku]
        new = ledger.publish_approved(run, [(by_sku[image.sku].decision, image) for image in shown])
        for one in ledger.showing(run, [image.shot for image in images]):
            attach_feed(services, one)
        self.log.info("published", run=run, images=len(shown), new=new)
        return [f"{run}: {reason}" for reason in refused]


class PlanRetriesOperator(PackshotOperator):
    """Returns the runs that generate again what people sent back or cut out anew, one a scene and channel.

    :param grace_seconds: decisions younger than this are left to the next run.
    """

    ui_color = "#f4ecd8"

    def __init__(
        self,
        *,
        grace_seconds: float = GRACE_SECONDS,
        execution_timeout: timedelta | None = timedelta(minutes=10),
        **kwargs: Any,
    ) -> None:
        super().__init__(execution_timeout=execution_timeout, **kwargs)
        self.grace_seconds = grace_seconds

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Hand the decisions to runs; returns the arguments of a `TryAgainOperator` for each."""
        from pipelines.contracts import Reprocess
        from pipelines.ledger.decisions import Choice, claim_retries
        from pipelines.scenes.channels import channel_files

        channels = channel_files()

        return [
            {
                "campaign": retry.run,
                "conf": {
                    "scene": retry.scene,
                    "channels": [retry.channel] if retry.channel in channels else None,  # else the scene's own
                    "skus": list(retry.skus),
                    # a corrected cutout is found by its key, so nothing is forced
                    "reprocess": (Reprocess.MISSING if retry.choice is Choice.EDIT else Reprocess.FAILED).value,
                    "triggered_by": "review",
                },
            }
            for retry in claim_retries(open_services().ledger.engine, self.grace_seconds)
        ]


class TryAgainOperator(PackshotOperator):
    """Starts a campaign, unless it was started before.

    :param campaign: the id of the run of `campaign_backfill`.
    :param conf: its parameters.
    """

    template_fields: Sequence[str] = ("run", "campaign", "conf")
    ui_color = "#e6f0fa"

    def __init__(
        self,
        *,
        campaign: str,
        conf: dict[str, Any],
        execution_timeout: timedelta | None = timedelta(minutes=10),
        map_index_template: str | None = "{{ task.conf['scene'] }}",
        **kwargs: Any,
    ) -> None:
        super().__init__(execution_timeout=execution_timeout, map_index_template=map_index_template, **kwargs)
        self.campaign = campaign
        self.conf = conf

    def execute(self, context: Context) -> None:
        """Ask Airflow for the run."""
        raise start_run("campaign_backfill", self.campaign, self.conf)
