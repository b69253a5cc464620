"""Airflow's own history, kept short: old runs, tasks, events and logs are removed. The ledger keeps what was made.

`list_history` counts what is older than so many days, and changes nothing; its log and its XCom have the numbers.
`remove_history` removes it.

**Starting it.** *Trigger*: a run by hand only lists, unless *Remove* is ticked. Set `PACKSHOT_HOUSEKEEPING_SCHEDULE` to
a cron such as `0 6 * * 0` where Airflow runs, and scheduled runs remove. It is off until then.
`PACKSHOT_AIRFLOW_HISTORY_DAYS` says how many days are kept.

**When something is red.** The log has the error of `airflow db clean`. Clearing a task is always safe: what was removed
is not there a second time. This DAG cleans the Airflow of `packshot up`; for your own, use `airflow db clean` itself.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import Param, dag

from operators.housekeeping import PruneAirflowOperator
from operators.policy import DEFAULT_ARGS, Tag
from pipelines.settings import get_settings

settings = get_settings()


@dag(
    dag_id="housekeeping",
    description="Lists and removes old history of Airflow itself: runs, tasks, events and logs.",
    doc_md=__doc__,
    schedule=settings.housekeeping_schedule or None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=6),
    default_args=DEFAULT_ARGS,
    tags=[Tag.PACKSHOT],
    params={
        "days": Param(
            settings.airflow_history_days,
            type="integer",
            minimum=7,
            title="Days",
            description="Keep the history of so many days.",
        ),
        "remove": Param(
            False,
            type=["null", "boolean"],
            title="Remove",
            description="Remove what is older. Without this, a run by hand only lists it; a scheduled run removes.",
        ),
    },
)
def housekeeping() -> None:
    """List first, then remove."""
    PruneAirflowOperator(task_id="list_history") >> PruneAirflowOperator(
        task_id="remove_history", apply="{{ params.remove or dag_run.run_type == 'scheduled' }}"
    )


housekeeping()
