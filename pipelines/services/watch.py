"""Close the runs that Airflow ended without their `summary`, and notify people of every run that failed.

Airflow's scheduler runs `watch` in a thread of its own (`plugins/packshot_plugin.py`). Every sweep compares the ledger
with Airflow, so it does not matter who ended a run, nor which service was down at the time.
"""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime, timedelta

import httpx
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from pipelines.errors import Unavailable, UsageError
from pipelines.ledger.endings import (
    OpenRun,
    end_run,
    notifying,
    open_runs,
    open_unplanned,
    reopen_run,
    unknown_runs,
)
from pipelines.ledger.postgres import connect
from pipelines.services.airflow_client import Airflow, AirflowRun, run_page
from pipelines.services.messages import Message, send
from pipelines.settings import Settings

log = logging.getLogger(__name__)

TAG = "packshot"
"""Tag of the DAGs whose runs are watched."""

PAUSE = 20.0
"""Seconds between two sweeps."""

LOOK_BACK = timedelta(days=1)
"""A run that failed before `plan` opened it in the ledger is found for so long."""

AGAIN = "start it again: finished steps are reused"


def watch(settings: Settings, base_url: str, stop: threading.Event) -> None:
    """Sweeps until `stop` is set. `base_url` is Airflow's address for people. A trouble is logged once, until it
    changes; the next sweep tries again."""
    trouble = ""
    reader = {"airflow_user": settings.watch_user, "airflow_password": settings.watch_password}
    try:
        engine, airflow = connect(settings.database_url), Airflow(settings.model_copy(update=reader))
    except UsageError as error:
        log.warning("no watch over the runs: %s", error)
        return
    with airflow:
        while not stop.wait(PAUSE):
            try:
                sweep(airflow, engine, settings, base_url)
                now = ""
            except (UsageError, Unavailable, httpx.HTTPError, SQLAlchemyError) as error:
                now = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            except Exception:
                log.exception("the watch over the runs has a bug")
                continue
            if now and now != trouble:
                log.warning("the watch over the runs (PACKSHOT_WATCH_USER) cannot work for now: %s", now)
            trouble = now
            engine.dispose()  # no connection is open while the scheduler forks its workers


def sweep(airflow: Airflow, engine: Engine, settings: Settings, base_url: str) -> None:
    """Brings the ledger's runs to the state that Airflow has them in, then notifies people of those that failed."""
    # 1. What Airflow runs, and what failed before the ledger knew of it
    active: dict[str, AirflowRun] = {}
    if dag_ids := airflow.dag_ids(TAG):
        active = {run.run: run for run in airflow.runs(dag_ids, ("queued", "running"))}
        failed = {run.run: run for run in airflow.runs(dag_ids, ("failed",), datetime.now(UTC) - LOOK_BACK)}
        for name in unknown_runs(engine, list(failed)):
            if failed[name].started_at is not None:  # else a person took it back before it began
                open_unplanned(engine, name, failed[name].dag_id)
    for run in active.values():
        if run.state == "running" and run.started_at is not None:
            reopen_run(engine, run.run, run.started_at)

    # 2. Close
    over = set()
    for opened in open_runs(engine):
        if opened.run in active:
            continue
        ended = airflow.run(opened.dag_id, opened.run)
        if ended is not None and not ended.ended:
            continue
        over.add(opened.run)
        if opened.state == "running":
            state, reason = ended.state if ended else "failed", why(airflow, opened, ended)
            if end_run(engine, opened.run, state, reason):
                log.warning("closed run %s as %s: %s", opened.run, state, reason)

    # 3. Notify
    problems: list[str] = []
    for opened in open_runs(engine):
        if opened.state == "failed" and opened.run in over:
            try:
                _notify(opened, engine, settings, base_url)
            except Unavailable as error:
                problems.append(str(error))
    if problems:
        raise Unavailable(problems[0])


def why(airflow: Airflow, opened: OpenRun, ended: AirflowRun | None) -> str:
    """Why Airflow ended a run, on one line: what failed, its error, and what to do."""
    if ended is None:
        return f"Airflow does not know this run any more: {AGAIN}"
    if who := airflow.marked_by(ended):
        before = f" (before that: {opened.reason})" if opened.reason else ""
        return f"{who} marked the run as {ended.state} in Airflow{before}; if it is still wanted, {AGAIN}"
    if ended.state == "success":
        return ""
    if opened.reason:
        return opened.reason
    limit, started, at = airflow.time_limit(ended.dag_id), ended.started_at, ended.ended_at
    if limit and started and at and at - started >= limit:
        return f"the run reached its time limit of {_duration(limit)} (dagrun_timeout); {AGAIN}"
    if failed := airflow.failed(ended.dag_id, ended.run):
        name = failed[0].name
        return (
            f"task {name} ended without a message: it was killed, perhaps for lack of memory, or marked by hand; see "
            "its log, then clear the task and what is downstream: finished steps are reused"
        )
    return f"Airflow ended the run before a task failed; {AGAIN}"


def _duration(limit: timedelta) -> str:
    hours = limit.total_seconds() / 3600
    return f"{hours / 24:g} days" if hours >= 48 else f"{hours:g} hours"


def _notify(failed: OpenRun, engine: Engine, settings: Settings, base_url: str) -> None:
    page = run_page(base_url, failed.dag_id, failed.run)
    reason = failed.reason or "a shot failed: the run's report names it, and the reason"
    with notifying(engine, failed.run) as mine:
        if mine:
            send(Message("run_failed", failed.run, failed.dag_id, failed.scene, reason, page), settings)
