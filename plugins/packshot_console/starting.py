"""Starts runs of `campaign_backfill` in Airflow's own process, in the name of the person who asked.

Airflow's REST API would do the same; this server has no login for it, and must not lend one. So the route demands the
right that the API demands (`guards.START`), and the run names the person.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from typing import Any

from packshot_console.guards import CAMPAIGN
from pipelines.errors import UsageError


def start_run(conf: Mapping[str, Any], by: str) -> str:
    """Queue one run over products whenever they changed; returns its id. Raises UsageError where Airflow refuses."""
    from airflow.api.common.trigger_dag import trigger_dag
    from airflow.exceptions import AirflowException, ParamValidationError
    from airflow.utils.types import DagRunTriggeredByType

    _is_ready()
    try:
        run = trigger_dag(CAMPAIGN, triggered_by=DagRunTriggeredByType.UI, triggering_user_name=by, conf=dict(conf))
    except (AirflowException, ParamValidationError, ValueError) as error:
        raise UsageError(f"Airflow refuses: {' '.join(str(error).split())}") from error
    assert run is not None
    return run.run_id


def start_days(conf: Mapping[str, Any], first: date, last: date, by: str) -> str:
    """Queue one run a day, `first` to `last`, as a backfill; returns the id of the first run. Raises UsageError where
    Airflow refuses, for example while another backfill is in progress."""
    from airflow.exceptions import AirflowException
    from airflow.models.backfill import AlreadyRunningBackfill, ReprocessBehavior, _create_backfill
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    _is_ready()
    try:
        backfill = _create_backfill(
            dag_id=CAMPAIGN,
            from_date=datetime.combine(first, time(), UTC),
            to_date=datetime.combine(last, time(), UTC),
            max_active_runs=1,
            reverse=False,
            dag_run_conf=dict(conf),
            triggering_user_name=by,
            reprocess_behavior=ReprocessBehavior.COMPLETED,
        )
    except AlreadyRunningBackfill as error:
        raise UsageError("another campaign over days is in progress, and Airflow runs one at a time") from error
    except (AirflowException, ValueError) as error:
        raise UsageError(f"Airflow refuses: {' '.join(str(error).split())}") from error
    with create_session() as session:
        runs = select(DagRun.run_id).where(DagRun.backfill_id == backfill.id).order_by(DagRun.partition_date)
        found = session.scalars(runs).first()
    if found is None:
        raise UsageError("Airflow made no run of these days: a run of each is in progress")
    return found


def state_of(run: str) -> str | None:
    """Airflow's state of a campaign's run; None for a run that it does not know."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        state = session.scalar(select(DagRun.state).where(DagRun.dag_id == CAMPAIGN, DagRun.run_id == run))
    return None if state is None else str(getattr(state, "value", state))


def _is_ready() -> None:
    """Raises UsageError where a run would wait for ever."""
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        dag = session.execute(
            select(DagModel.is_paused, DagModel.is_stale).where(DagModel.dag_id == CAMPAIGN)
        ).one_or_none()
    if dag is None or dag.is_stale:
        raise UsageError(f"Airflow has not read the DAG {CAMPAIGN}: look at its import errors")
    if dag.is_paused:
        raise UsageError(f"the DAG {CAMPAIGN} is paused: turn it on in Airflow")
