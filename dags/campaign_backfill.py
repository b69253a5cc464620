"""One scene over products that are known already, day by day: started by hand, never by itself.

A run covers the products that were new or changed on its day, or the SKUs that are named. It reuses the cutouts and
descriptions of every earlier run; what a new scene costs is generating, upscaling and inspecting.

**Starting it.** `packshot campaign --scene S --from DATE --to DATE`, `POST /api/v2/backfills`, `airflow backfill
create`, or here: *Trigger → Backfill*. In that dialog tick **Override parameters on existing runs**, otherwise Airflow
does not send the form, and choose **All runs** where the days had a campaign before. Both days are included and must
not lie in the future. Airflow runs one backfill of a DAG at a time.

**Dry run.** Counts shots, steps that are there already and the seconds that the rest takes at measured rates; computes
nothing. The numbers are in the XCom `forecast` of `plan` and in the run's record.

**Why it looks scheduled.** Airflow backfills only DAGs with a periodic timetable. This one ends on the day it begins,
long past, so the scheduler never starts a run of it. A plain trigger is refused, because Airflow would leave the tasks
of a run dated after that end waiting for ever.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import CronPartitionTimetable, Param, TriggerRule, dag

from operators.plan import PlanCampaignOperator
from operators.policy import DEFAULT_ARGS, Tag, scene_param, selection_params
from operators.publish import CheckTableOperator, PublishOperator, SummaryOperator
from operators.shots import shots_of

ONE_PAST_DAY = datetime(2020, 1, 1)


@dag(
    dag_id="campaign_backfill",
    description="One scene over products that are known already, by day or by SKU; reuses cutouts and descriptions.",
    doc_md=__doc__,
    schedule=CronPartitionTimetable("0 0 * * *", timezone="UTC", key_format="%Y-%m-%d"),
    start_date=ONE_PAST_DAY,
    end_date=ONE_PAST_DAY,
    allowed_run_types=["scheduled", "backfill"],  # type: ignore[list-item]  # their enum is not public
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(days=7),
    default_args=DEFAULT_ARGS,
    tags=[Tag.PACKSHOT, Tag.CAMPAIGN, Tag.GPU],
    params={
        "scene": scene_param(),
        **selection_params(),
        "dry_run": Param(
            False,
            type="boolean",
            title="Dry run",
            description="Count shots, reuse and the time expected; compute nothing.",
        ),
    },
)
def campaign_backfill() -> None:
    """Plan, make, check, publish, sum up."""
    plan = PlanCampaignOperator(task_id="plan", forecast_only="{{ params.dry_run }}")
    shots = shots_of(plan.output)
    check_scores = CheckTableOperator(
        task_id="check_scores", table="scores", trigger_rule=TriggerRule.ALL_DONE_MIN_ONE_SUCCESS
    )
    publish = PublishOperator(task_id="publish")
    summary = SummaryOperator(task_id="summary", checks=["check_scores", "publish"], trigger_rule=TriggerRule.ALL_DONE)

    shots >> check_scores >> publish >> summary


campaign_backfill()
