"""Scene images for a whole feed: whatever is new or changed is made, everything else is reused.

`plan` reads the feed and cuts shards; each shard goes through cutout → describe → generate → upscale → inspect in pool
`gpu`; what passed its checks is published as one set, or not at all.

**Starting it.** *Trigger*, choose a scene, *Trigger*; or `packshot run CATALOG --scene S`, which puts feed and photos
into the store first. *Feed* (under *Seldom needed*) is the digest of a manifest in the store, a CSV or TSV file or an
address that a worker can read, or empty: the feed that was named last; a file or an address is read again.

**Nightly.** Set `PACKSHOT_NIGHTLY_SCHEDULE` to a cron such as `0 3 * * *` (`@daily` works too) where Airflow runs, and
the refresh of the last feed is scheduled daily, in scene `PACKSHOT_NIGHTLY_SCENE`. It is off until then. An unchanged
product costs no computation. A nightly run that has not ended after `PACKSHOT_NIGHTLY_HOURS` is reported as late.

**Several channels.** A run has one channel, the first that is named. `next_channel` starts the same run for the others,
over the products that this one read; what the channels share is computed once.

**Waves.** A refresh of more work than 128 full shards goes in waves: a run works on a part and publishes it, and
`next_wave` starts a run for the rest, `…__wave_2` and so on. The first wave is small, so the first images are shown
soon. A run that computes everything anew is one wave.

**When something is red.** A bad photo never fails the run: its product is `rejected` with a reason (*Pictures of this
run* in any task). `publish` fails when the table checks found the set to be defective: nothing of it is published, the
problem is in the run's report; once it is mended, clear `publish` and what follows. If `next_channel` or `next_wave`
fails, this run's images are shown, and the report names what was not started. Clearing any task is always safe.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import Param, TriggerRule, dag

from operators.channels import NextChannelOperator
from operators.deadline import nightly_deadline
from operators.plan import WHO, PlanRefreshOperator
from operators.policy import (
    DEFAULT_ARGS,
    SELDOM,
    Tag,
    channels_param,
    limit_param,
    most_tasks,
    scene_param,
    selection_params,
)
from operators.publish import CheckTableOperator, PublishOperator, SummaryOperator
from operators.shots import shots_of
from operators.waves import NextWaveOperator
from pipelines.scenes import scene_names
from pipelines.settings import get_settings

settings = get_settings()


@dag(
    dag_id="catalog_refresh",
    description="Scene images for a whole feed; reuses whatever did not change.",
    doc_md=__doc__,
    schedule=settings.nightly_schedule or None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=2,
    max_active_tasks=most_tasks(),
    dagrun_timeout=timedelta(days=2),
    deadline=nightly_deadline(),
    default_args=DEFAULT_ARGS,
    tags=[Tag.PACKSHOT, Tag.NIGHTLY, Tag.GPU],
    params={
        "scene": scene_param(settings.nightly_scene or scene_names()[0]),
        "channels": channels_param(settings.nightly_channels.split(",")),
        **selection_params(),
        "feed": Param(
            None,
            type=["null", "string"],
            title="Feed",
            description="Digest of a manifest, a CSV, TSV or XML file, or an http(s) address. Empty: the last named.",
            section=SELDOM,
        ),
        "accept_loss": Param(
            False,
            type=["null", "boolean"],
            title="Accept loss",
            description="Take the feed even if over 20 % of its products are gone; their images are withdrawn.",
            section=SELDOM,
        ),
        "limit": limit_param(),
    },
)
def catalog_refresh() -> None:
    """Plan, make, check, publish, start what comes next, sum up."""
    plan = PlanRefreshOperator(task_id="plan")
    shots = shots_of(plan.output)
    check_catalogue = CheckTableOperator(task_id="check_catalogue", table="catalogue")
    # a shard that was lost to broken infrastructure does not keep the others from being published; the summary says so.
    # And a run whose shots are all known has no shard, but may have images to publish
    check_scores = CheckTableOperator(task_id="check_scores", table="scores", trigger_rule=TriggerRule.ALL_DONE)
    publish = PublishOperator(task_id="publish")
    summary = SummaryOperator(
        task_id="summary",
        checks=["plan", "check_catalogue", "check_scores", "publish"],
        starts=["next_channel", "next_wave"],
        trigger_rule=TriggerRule.ALL_DONE,
    )

    plan >> check_catalogue
    plan >> NextChannelOperator(task_id="next_channel") >> summary
    [plan, shots] >> check_scores
    [check_catalogue, check_scores] >> publish >> NextWaveOperator(task_id="next_wave", triggered_by=WHO) >> summary
    publish >> summary


catalog_refresh()
