"""One scene over products that are known already, day by day: started by hand, never by itself.

A run covers the products that were new or changed on its day, or the SKUs that are named. It reuses the cutouts and
descriptions of every earlier run; what a new scene costs is generating, upscaling and inspecting.

**Products, whenever they changed.** *Trigger → Single Run*: choose a scene, name categories or SKUs, *Trigger*.

**Products that were new or changed on some days.** *Trigger → Backfill*: choose the days, tick **Override parameters on
existing runs**, choose a scene, *Run Backfill*. Without the tick Airflow does not send the form, and the runs end in
`plan`, because no scene was chosen. Choose **All Runs** where the days had a campaign before. Both days are included.
Airflow runs one backfill of a DAG at a time.

**From outside.** `packshot campaign --scene S --from DATE --to DATE`, `POST /api/v2/backfills` or `airflow backfill
create`.

**Dry run.** Counts shots, steps that are there already and the seconds that the rest takes at measured rates; computes
nothing. The numbers are in the XCom `forecast` of `plan` and in the run's record.

**Several channels.** A run has one channel, the first that is named. `next_channel` starts the same run for the others;
what the channels share is computed once. A dry run counts all channels. If `next_channel` fails, the run's report names
the channels that were not started.

**Why it has a schedule.** Airflow backfills only DAGs with a periodic timetable. This one's is packshot's own: it has
a day for every backfill, and proposes no run.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import Param, TriggerRule, dag
from packshot_timetable import ByHandOrBackfill

from operators.channels import NextChannelOperator
from operators.plan import PlanCampaignOperator
from operators.policy import (
    DEFAULT_ARGS,
    TICK,
    Tag,
    channels_param,
    limit_param,
    most_tasks,
    scene_param,
    selection_params,
)
from operators.publish import CheckTableOperator, PublishOperator, SummaryOperator
from operators.shots import shots_of


@dag(
    dag_id="campaign_backfill",
    description="One scene over products that are known already, by day or by SKU; reuses cutouts and descriptions.",
    doc_md=__doc__,
    schedule=ByHandOrBackfill(),
    start_date=datetime(2020, 1, 1),
    catchup=False,
    max_active_runs=1,
    max_active_tasks=most_tasks(),
    dagrun_timeout=timedelta(days=7),
    default_args=DEFAULT_ARGS,
    tags=[Tag.PACKSHOT, Tag.CAMPAIGN, Tag.GPU],
    params={
        "scene": scene_param(hint=f"In a backfill, tick '{TICK}' above, or Airflow does not send this form."),
        "channels": channels_param(),
        **selection_params(),
        "dry_run": Param(
            False,
            type=["null", "boolean"],
            title="Dry run",
            description="Count shots, reuse and the time expected; compute nothing.",
        ),
        "limit": limit_param(),
    },
)
def campaign_backfill() -> None:
    """Plan, make, check, publish, sum up."""
    plan = PlanCampaignOperator(task_id="plan", forecast_only="{{ params.dry_run }}")
    shots = shots_of(plan.output)
    check_scores = CheckTableOperator(task_id="check_scores", table="scores", trigger_rule=TriggerRule.ALL_DONE)
    publish = PublishOperator(task_id="publish")
    summary = SummaryOperator(
        task_id="summary",
        checks=["plan", "check_scores", "publish"],
        starts=["next_channel"],
        trigger_rule=TriggerRule.ALL_DONE,
    )

    plan >> NextChannelOperator(task_id="next_channel", forecast_only="{{ params.dry_run }}") >> summary
    [plan, shots] >> check_scores >> publish >> summary


campaign_backfill()
