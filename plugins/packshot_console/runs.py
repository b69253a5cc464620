"""Runs: the list, one run's shots, cancelling a run in progress, and trying again what a run did not publish.

GET  /runs                         the last runs
GET  /runs/{run}                   every shot: photo → cutout → raw → final, verdicts, seconds, why it was held back
POST /runs/{run}/cancel            ends the run and those that come after it; what is finished is kept
GET  /runs/{run}/retries           how many shots of a cause can be tried again
POST /runs/{run}/retries           starts a campaign over these
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Annotated, Any

from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import Field
from sqlalchemy import text

from packshot_console import airflow_runs, views
from packshot_console.guards import CAMPAIGN, CANCEL, DAGS, START
from packshot_console.pages import page as render
from packshot_console.pages import path_of
from packshot_console.requests import Body, Words, may_cancel, may_start, read_body, reply
from packshot_console.services import ledger
from pipelines.contracts import ShotState, run_of_channel
from pipelines.errors import UsageError
from pipelines.ledger.endings import end_run, open_unplanned
from pipelines.ledger.retries import RETRIED, Retry, find_retry
from pipelines.ledger.waves import next_wave
from pipelines.scenes import load_scene
from pipelines.scenes.channels import channel_files

PAGE_SIZE = 40
RUNS_A_PAGE = 50

NO_SUCH_RUN = "the ledger knows no such run"

PageNumber = Annotated[int, Query(ge=1, le=100_000)]

router = APIRouter(prefix="/runs")


class Cancellation(Body):
    """Body of a cancellation."""

    reason: Words = ""


class Again(Body):
    """Body of a retry: a cause as the run's page has it, and how many shots the person saw."""

    state: Words
    cause: Words
    shots: Annotated[int, Field(ge=1, lt=2**31)]


@router.get("")
def run_list(request: Request, page: PageNumber = 1) -> Response:
    """The last runs."""
    return render(request, "runs.html", runs=views.runs(page, RUNS_A_PAGE), number=page, size=RUNS_A_PAGE)


@router.get("/{run}")
def run_page(
    request: Request,
    user: GetUserDep,
    run: str,
    state: Annotated[str, Query(pattern=r"^[a-z]*$")] = "",
    page: PageNumber = 1,
) -> Response:
    """One run's shots."""
    found = views.run_page(run, state, page, PAGE_SIZE)
    if found is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, NO_SUCH_RUN)
    in_progress = found.run_state == "running" and found.dag_id in DAGS
    return render(
        request,
        "run.html",
        view=found,
        may_cancel=in_progress and may_cancel(user),
        may_retry=found.run_state != "running" and may_start(user),
    )


@router.post("/{run}/cancel", dependencies=CANCEL)
async def cancel(request: Request, user: GetUserDep, run: str) -> Response:
    """End a run that is in progress, and what would come after it. 409 for one that ended; the answer has the number of
    days that were taken back, and the further runs that were ended."""
    body = await read_body(request, Cancellation)
    return await run_in_threadpool(reply, lambda: {"run": run, **_cancel(run, user.get_name(), body.reason)})


@router.get("/{run}/retries", dependencies=START[:1])
def retry_count(
    run: str,
    state: Annotated[str, Query(max_length=20)],
    cause: Annotated[str, Query(max_length=2000)],
) -> Response:
    """How many shots of a cause a retry would make, and how many it leaves out."""
    return reply(lambda: _told(_found(run, state, cause)))


@router.post("/{run}/retries", dependencies=START)
async def retry(request: Request, user: GetUserDep, run: str) -> Response:
    """Start a campaign over the shots of a cause. 409 if their number is another than the person saw."""
    body = await read_body(request, Again)

    def act() -> dict[str, Any]:
        found = _found(run, body.state, body.cause)
        if len(found.skus) != body.shots:
            raise UsageError(f"it is {len(found.skus)} products now, not {body.shots}: look again")
        channel = found.channel if found.channel in channel_files() else ""  # else the scene's own
        load_scene(found.scene, channel=channel)
        conf = {"scene": found.scene, "skus": list(found.skus), "reprocess": found.reprocess.value}
        started = airflow_runs.start_run(conf | ({"channels": [channel]} if channel else {}), user.get_name())
        return {"run": started, "page": path_of(request, "started", run=started)}

    return await run_in_threadpool(reply, act)


def _cancel(run: str, by: str, reason: str) -> dict[str, Any]:
    """Airflow first: as long as it runs tasks, the run is not over. Then what it has started, in the same order."""
    about = text("SELECT dag_id, state, params FROM runs WHERE id = :run")
    with ledger().engine.connect() as connection:
        found = connection.execute(about, {"run": run}).first()
    state = found.state if found is not None else airflow_runs.state_of(run)
    if state is None:
        raise UsageError(NO_SUCH_RUN)
    if found is not None and found.dag_id not in DAGS:
        raise UsageError("only a run that makes images is cancelled")
    if state not in ("queued", "running"):
        raise UsageError("the run ended before")
    dag_id = found.dag_id if found else CAMPAIGN
    days = airflow_runs.stop_run(dag_id, run, by)
    words = f"{by} cancelled the run{f': {reason.strip()}' if reason.strip() else ''}"
    if found is not None and not end_run(ledger().engine, run, "cancelled", words):
        raise UsageError("the run ended meanwhile")
    further = _cancel_what_follows(dag_id, run, found.params, by) if found is not None else []
    return {"days": days, "further": further}


def _cancel_what_follows(dag_id: str, run: str, params: Mapping[str, Any], by: str) -> list[str]:
    """End the runs that a run, or another day of its campaign, has started: for further channels, and next waves.

    Returns their ids. `plan` refuses what is started all the same.
    """
    channels = list(dict.fromkeys(params.get("channels") or []))[1:]
    ended = []
    for day in airflow_runs.days_of(dag_id, run):
        first = params.get("group") or day
        for start in (run_of_channel(first, channel) for channel in channels):
            ended += [one for one in (start, *_waves(dag_id, start)) if _cancel_one(dag_id, one, run, by)]
    return ended + [one for one in _waves(dag_id, run) if _cancel_one(dag_id, one, run, by)]


def _waves(dag_id: str, run: str) -> Iterator[str]:
    """The waves after a run that Airflow knows."""
    while airflow_runs.state_of(run := next_wave(run), dag_id) is not None:
        yield run


def _cancel_one(dag_id: str, run: str, before: str, by: str) -> bool:
    """End a run because one before it was cancelled; False if it was not in progress."""
    state = airflow_runs.state_of(run, dag_id)
    if state not in ("queued", "running"):
        return False
    airflow_runs.stop_run(dag_id, run, by)
    if state == "running":
        open_unplanned(ledger().engine, run, dag_id)  # else its end is a failure that people are notified of
    end_run(ledger().engine, run, "cancelled", f"{by} cancelled run {before}, which started this one")
    return True


def _found(run: str, state: str, cause: str) -> Retry:
    if state not in RETRIED:
        raise UsageError("only held, rejected and failed products are tried again")
    found = find_retry(ledger().engine, run, ShotState(state), cause)
    if found is None:
        raise UsageError("no run that ended has this id")
    if not found.skus:
        raise UsageError("nothing is left to try again: all were made again or decided since, or left the feed")
    return found


def _told(found: Retry) -> dict[str, Any]:
    return {"shots": len(found.skus), "left": found.left, "scene": found.scene, "reprocess": found.reprocess.value}
