"""Starts and stops runs in Airflow's own process, in the name of the person who asked.

Airflow's REST API would do the same; this server has no login for it, and must not lend one. So a route demands the
right that the API demands (`guards.START`, `guards.CANCEL`), and Airflow's records name the person.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING, Any

from packshot_console.guards import CAMPAIGN
from pipelines.errors import UsageError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


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


def stop_run(dag_id: str, run: str, by: str) -> int:
    """End a run: its tasks in progress are ended, the others are skipped. Of a campaign over days, the days that have
    not begun are taken back too; returns how many. A run that Airflow does not know, or that ended, stays as it is."""
    from airflow.api.common.mark_tasks import set_dag_run_state_to_failed
    from airflow.models.dagbag import DBDagBag
    from airflow.models.dagrun import DagRun
    from airflow.models.log import Log
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        found = session.scalar(select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run))
        if found is None or str(found.state) not in ("queued", "running"):
            return 0
        days = _take_back(session, found.backfill_id, found.id) if found.backfill_id is not None else 0
        dag = DBDagBag().get_dag_for_run(found, session=session)
        if dag is None:
            raise UsageError(f"Airflow has no version of the DAG {dag_id} any more: mark the run in Airflow")
        set_dag_run_state_to_failed(dag=dag, run_id=run, commit=True, session=session)
        # the entry that Airflow's own page makes
        extra = '{"state": "failed", "by": "packshot"}'
        session.add(Log(event="patch_dag_run", dag_id=dag_id, run_id=run, owner=by, extra=extra))
    return days


def _take_back(session: Session, backfill: int, run: int) -> int:
    """Fail the other runs of a backfill that are queued, and let it make no more."""
    from airflow.models.backfill import Backfill, BackfillDagRun
    from airflow.models.dagrun import DagRun
    from sqlalchemy import func, select, update

    session.execute(update(Backfill).where(Backfill.id == backfill).values(is_paused=True))
    session.commit()  # the scheduler starts no other day from now on
    days = select(BackfillDagRun.dag_run_id).where(BackfillDagRun.backfill_id == backfill)
    taken = session.execute(
        update(DagRun)
        .where(DagRun.id.in_(days), DagRun.id != run, DagRun.state == "queued")
        .values(state="failed")
        .returning(DagRun.id)
        .execution_options(synchronize_session=False)
    ).all()
    session.execute(update(Backfill).where(Backfill.id == backfill).values(completed_at=func.now()))
    return len(taken)


def days_of(dag_id: str, run: str) -> list[str]:
    """The runs of a campaign over days that a run belongs to, itself too; a run that is none has only itself."""
    from airflow.models.backfill import BackfillDagRun
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    own = select(DagRun.backfill_id).where(DagRun.dag_id == dag_id, DagRun.run_id == run).scalar_subquery()
    days = select(BackfillDagRun.dag_run_id).where(BackfillDagRun.backfill_id == own)
    with create_session() as session:
        return list(session.scalars(select(DagRun.run_id).where(DagRun.id.in_(days)))) or [run]


def state_of(run: str, dag_id: str = CAMPAIGN) -> str | None:
    """Airflow's state of a run; None for a run that it does not know."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        state = session.scalar(select(DagRun.state).where(DagRun.dag_id == dag_id, DagRun.run_id == run))
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
