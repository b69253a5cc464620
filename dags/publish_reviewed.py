"""What people decided about held images, done: approved images are published, others are generated again.

**Starting it.** Nobody needs to. The review page and `packshot approve` report every decision as an event of the asset
`packshot_decisions`, which starts this DAG; it also runs every night. The decisions in the ledger are the truth and an
event is only a hint: a run acts on all decisions that nothing followed from yet, whoever made them.

**What it does.** It waits until nobody has decided anything for ten seconds. It publishes each approved image in the
run that held it, and writes that run's feed anew. Shots that are to be tried again become one run of
`campaign_backfill` for each scene, with another seed.

**When something is red.** `publish` names the run and the image that the table check refuses, or the scene that is
gone. The other images are published. Once the cause is removed, clear `publish`: clearing any task is always safe.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import Asset, AssetOrTimeSchedule, CronTriggerTimetable, TriggerRule, dag

from operators.policy import DEFAULT_ARGS, Tag
from operators.reviewed import DECISIONS, PlanRetriesOperator, PublishApprovedOperator, TryAgainOperator


@dag(
    dag_id="publish_reviewed",
    description="Publishes what people approved, and generates again what they sent back.",
    doc_md=__doc__,
    schedule=AssetOrTimeSchedule(timetable=CronTriggerTimetable("0 5 * * *", timezone="UTC"), assets=Asset(DECISIONS)),
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=6),
    default_args=DEFAULT_ARGS,
    tags=[Tag.PACKSHOT, Tag.NIGHTLY],
)
def publish_reviewed() -> None:
    """Publish what was approved, then start what is to be generated again."""
    publish = PublishApprovedOperator(task_id="publish")
    plan_retries = PlanRetriesOperator(task_id="plan_retries", trigger_rule=TriggerRule.ALL_DONE)
    try_again = TryAgainOperator.partial(task_id="try_again").expand_kwargs(plan_retries.output)

    publish >> plan_retries >> try_again


publish_reviewed()
