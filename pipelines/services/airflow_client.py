"""The part of Airflow's REST API (/api/v2) that the command line needs: trigger, follow, backfill, pools, health.

    with Airflow(get_settings()) as airflow:
        run = airflow.trigger("catalog_refresh", {"feed": digest, "scene": "oak-window"})
        success = airflow.follow("catalog_refresh", run)

An error that the user can correct (wrong login, bad parameter, a running backfill) is a `UsageError` of one line. A
server that does not answer is `Unavailable`. Other errors are httpx's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, Self
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter

from pipelines.errors import Unavailable, UsageError
from pipelines.settings import Settings

ENDED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
"""States of runs and task instances after which nothing more happens by itself."""

REFUSED = frozenset(
    {
        httpx.codes.BAD_REQUEST,
        httpx.codes.FORBIDDEN,
        httpx.codes.NOT_FOUND,
        httpx.codes.CONFLICT,
        httpx.codes.UNPROCESSABLE_ENTITY,
    }
)

MOST_DAYS = 366
"""Days of a backfill."""

BACKFILL_LAG = 60.0
"""Seconds: Airflow notices a backfill's end up to half a minute late, and refuses another one until then."""

WARM_UP = 120.0
"""Seconds that the Execution API has for its first answer."""

PATIENCE = 300.0
"""Seconds for which the API may be away while a run is followed."""

STANDSTILL = 60.0
"""Seconds without a change after which the cause of a standstill is looked for."""

TASKS_A_SECOND = 200
"""Task instances polled a second at most, so that following a large run does not slow it down."""


@dataclass(frozen=True, slots=True)
class RunProgress:
    """State of a run and of its task instances. `total` grows once, when the shards are known. Tasks that are `waiting`
    failed and will be tried again."""

    state: str
    done: int
    total: int
    running: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class AirflowRun:
    """One run as Airflow has it. `started_at` is None while it is queued, `ended_at` until it ends."""

    run: str
    dag_id: str
    state: str
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class FailedTask:
    """A task instance that failed: `name` is its id, with the number of its shard; `page` has its log."""

    name: str
    page: str


@dataclass(frozen=True, slots=True)
class Backfill:
    """A backfill and the ids of its runs, by day."""

    id: int
    runs: tuple[str, ...]


class Airflow:
    """One authenticated session. The token is fetched at the first call and again when it has expired."""

    def __init__(self, settings: Settings, timeout: float = 30.0):
        if not settings.airflow_url:
            raise UsageError("no Airflow is known: start it with `packshot up`, or set PACKSHOT_AIRFLOW_URL")
        self.url = settings.airflow_url.rstrip("/")
        self._login = {"username": settings.airflow_user, "password": settings.airflow_password.get_secret_value()}
        # a proxy of the environment must not see the calls to a server on this machine
        loopback = httpx.URL(self.url).host in {"127.0.0.1", "localhost", "::1"}
        self._client = httpx.Client(base_url=self.url, timeout=timeout, trust_env=not loopback)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    # ------------------------------------------------------------------------------------------------ DAGs and health

    def health(self) -> dict[str, str]:
        """State of metadatabase, scheduler, dag processor and triggerer: `healthy`, `unhealthy` or `none`."""
        answer = _decoded(self._request("GET", "/api/v2/monitor/health", authenticated=False))
        return {name: (part or {}).get("status") or "none" for name, part in answer.items()}

    def heartbeats(self) -> dict[str, datetime]:
        """When each component that beats did so last."""
        answer = _decoded(self._request("GET", "/api/v2/monitor/health", authenticated=False))
        beats = {name: (part or {}).get(f"latest_{name}_heartbeat") for name, part in answer.items()}
        return {name: datetime.fromisoformat(beat) for name, beat in beats.items() if beat}

    def warm_up(self) -> None:
        """Calls the Execution API once: its first call takes seconds, which would delay the first task.

        On a busy machine it takes minutes, and nobody needs the answer.
        """
        with suppress(httpx.TimeoutException):
            self._request("GET", "/execution/health", authenticated=False, timeout=WARM_UP)

    def import_errors(self) -> list[str]:
        """DAG files that do not parse: `file: last line of the trace`. Empty is good."""
        answer = self._call("GET", "/api/v2/importErrors")
        return [f"{e['filename']}: {e['stack_trace'].strip().splitlines()[-1]}" for e in answer["import_errors"]]

    def dag_ids(self, tag: str | None = None) -> list[str]:
        """The DAGs that Airflow has read, those with this tag if one is given."""
        params = {"limit": 100} | ({"tags": tag} if tag else {})
        return sorted(dag["dag_id"] for dag in self._call("GET", "/api/v2/dags", params=params)["dags"])

    def time_limit(self, dag_id: str) -> timedelta | None:
        """How long a run of the DAG may take."""
        limit = self._call("GET", f"/api/v2/dags/{dag_id}/details")["dag_run_timeout"]
        return TypeAdapter(timedelta | None).validate_python(limit)  # an ISO 8601 duration

    def pools(self) -> dict[str, int]:
        """Slots of every pool."""
        answer = self._call("GET", "/api/v2/pools", params={"limit": 100})
        return {pool["name"]: pool["slots"] for pool in answer["pools"]}

    def set_pool(self, name: str, slots: int, description: str) -> None:
        """Creates or updates the pool. A task in a missing pool waits for ever, without a message."""
        known = self.pools()
        pool = {"name": name, "slots": slots, "description": description, "include_deferred": True}
        if name not in known:
            self._call("POST", "/api/v2/pools", json=pool)
        elif known[name] != slots:
            self._call("PATCH", f"/api/v2/pools/{quote(name)}", json=pool)

    # ------------------------------------------------------------------------------------------------ runs

    def trigger(self, dag_id: str, conf: Mapping[str, Any]) -> str:
        """Start a run with these Params; returns its id. Raises UsageError when Airflow finds one of them wrong."""
        body = {"logical_date": None, "conf": dict(conf)}
        return self._call("POST", f"/api/v2/dags/{dag_id}/dagRuns", json=body)["dag_run_id"]

    def progress(self, dag_id: str, run_id: str) -> RunProgress:
        """How far the run is now."""
        state = self._call("GET", _run_path(dag_id, run_id))["state"]
        tasks = self.tasks(dag_id, run_id)
        running = sorted(_task_name(task) for task in tasks if task["state"] == "running")
        waiting = sorted(_task_name(task) for task in tasks if task["state"] == "up_for_retry")
        done = sum(task["state"] in ENDED for task in tasks)
        return RunProgress(state, done, len(tasks), tuple(running), tuple(waiting))

    def run(self, dag_id: str, run_id: str) -> AirflowRun | None:
        """The run, or None if Airflow does not know it."""
        answer = self._request("GET", _run_path(dag_id, run_id))
        return None if answer.status_code == httpx.codes.NOT_FOUND else _run(_decoded(answer))

    def runs(
        self, dag_ids: Sequence[str], states: Sequence[str], ended_since: datetime | None = None
    ) -> list[AirflowRun]:
        """The newest 100 runs of these DAGs in these states."""
        body = {"dag_ids": list(dag_ids), "states": list(states), "order_by": "-id", "page_limit": 100}
        if ended_since is not None:
            body["end_date_gte"] = ended_since.isoformat()
        return [_run(found) for found in self._call("POST", "/api/v2/dags/~/dagRuns/list", json=body)["dag_runs"]]

    def marked_by(self, run: AirflowRun) -> str:
        """Who set the run to the state that it is in, by Airflow's audit log. "" if nobody did, or if this user may not
        read that log."""
        params = {"dag_id": run.dag_id, "run_id": run.run, "event": "patch_dag_run", "order_by": "-when", "limit": 1}
        if run.started_at is not None:
            params["after"] = run.started_at.isoformat()
        answer = self._request("GET", "/api/v2/eventLogs", params=params)
        found = [] if answer.status_code == httpx.codes.FORBIDDEN else _decoded(answer)["event_logs"]
        return str(found[0]["owner"]) if found and f'"state": "{run.state}"' in (found[0]["extra"] or "") else ""

    def mark(self, dag_id: str, run_id: str, state: Literal["success", "failed"]) -> None:
        """Ends a run by hand, as its page in Airflow does."""
        self._call("PATCH", _run_path(dag_id, run_id), json={"state": state})

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The run's task instances as the API tells them: task_id, map_index, state, pool, try_number, ..."""
        return self._pages(f"{_run_path(dag_id, run_id)}/taskInstances", "task_instances", order_by="id")

    def failed(self, dag_id: str, run_id: str) -> list[FailedTask]:
        """The run's failed task instances, the first to fail first, as it may be the cause of the others."""
        failed = [task for task in self.tasks(dag_id, run_id) if task["state"] == "failed"]
        page = f"{self.page(dag_id, run_id)}/tasks"
        return [
            FailedTask(
                _task_name(task),
                f"{page}/{task['task_id']}" + (f"/mapped/{task['map_index']}" if task["map_index"] >= 0 else ""),
            )
            for task in sorted(failed, key=lambda task: task["end_date"] or "")
        ]

    def page(self, dag_id: str, run_id: str) -> str:
        """Address of the run in Airflow's UI."""
        return run_page(self.url, dag_id, run_id)

    def follow(
        self,
        dag_id: str,
        run_id: str,
        progress: Callable[[int, int, str], None] | None = None,
        warn: Callable[[str], None] = lambda line: None,
        poll_seconds: float = 2.0,
        timeout_seconds: float = float("inf"),
    ) -> bool:
        """Wait for the run's end; returns whether it succeeded.

        `progress(done, total, note)` is called at every poll: task instances that ended, all task instances, and the
        names of those that run. An API that does not answer is polled again for PATIENCE seconds. If nothing changes
        for STANDSTILL seconds, `warn` gets one line with the cause and the remedy, where one is known. Raises
        TimeoutError if the run is not over after `timeout_seconds`.
        """
        from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

        deadline = time.monotonic() + timeout_seconds
        patiently = Retrying(
            retry=retry_if_exception_type((Unavailable, httpx.HTTPError)),  # the run itself goes on
            wait=wait_fixed(poll_seconds),
            stop=stop_after_delay(PATIENCE),
            before_sleep=lambda call: still.say(AWAY.format(self.url)),
            reraise=True,
        )
        still = _Standstill(warn)
        while True:
            now = patiently(self.progress, dag_id, run_id)
            still.see(now)
            if still.is_long:
                still.say(patiently(self._why_still, now))
            if progress is not None:
                progress(now.done, now.total, ", ".join(now.running) or now.state)
            if now.ended:
                return now.state == "success"
            if time.monotonic() > deadline:
                raise TimeoutError(f"{dag_id} {run_id} is {now.state} after {timeout_seconds:g} s")
            time.sleep(max(poll_seconds, now.total / TASKS_A_SECOND))

    def _why_still(self, now: RunProgress) -> str:
        """Why nothing changes, and what to do; "" where tasks are just at work."""
        if now.waiting:
            return f"{', '.join(now.waiting)} failed and waits for another try; its log in Airflow says why"
        silent = [name for name, state in self.health().items() if state == "unhealthy"]
        return f"Airflow's {', '.join(silent)} sends no heartbeat: `packshot up` starts it again" if silent else ""

    # ------------------------------------------------------------------------------------------------ backfills

    def backfill(self, dag_id: str, first: date, last: date, conf: Mapping[str, Any]) -> Backfill:
        """Starts one run a day from `first` to `last`, both included, one after the other.

        A day whose last run is still active gets none. Raises UsageError while another backfill of the DAG is active,
        for a range that ends in the future or has more than MOST_DAYS, and for bad Params.
        """
        from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

        today = datetime.now(UTC).date()
        if last > today:
            # Airflow would accept it, delay the future days, and refuse every other backfill until then
            raise UsageError(f"{last} is in the future (it is {today} in UTC): its products are not known yet")
        if (many := (last - first).days + 1) > MOST_DAYS:  # Airflow would make all at once, and not answer meanwhile
            raise UsageError(f"{first} to {last} are {many} days, each a run: a campaign has {MOST_DAYS} at most")
        ended_unnoticed = Retrying(
            retry=retry_if_result(lambda r: r.status_code == httpx.codes.CONFLICT and not self._under_way(dag_id)),
            wait=wait_fixed(2),
            stop=stop_after_delay(BACKFILL_LAG),
            retry_error_callback=lambda state: state.outcome and state.outcome.result(),
        )
        body = _backfill_body(dag_id, first, last, conf)
        made = _decoded(ended_unnoticed(self._request, "POST", "/api/v2/backfills", json=body))
        # The API does not list the runs of a backfill. But a DAG has at most one active backfill, and a partitioned DAG
        # gets new runs every time, so its runs are those of these days that were queued since.
        since = datetime.fromisoformat(made["created_at"])
        days = {"partition_date_gte": first.isoformat(), "partition_date_lte": last.isoformat()}
        runs = self._pages(f"/api/v2/dags/{dag_id}/dagRuns", "dag_runs", run_type="backfill", order_by="id", **days)
        mine = [run for run in runs if datetime.fromisoformat(run["queued_at"]) >= since]
        return Backfill(made["id"], tuple(r["dag_run_id"] for r in sorted(mine, key=lambda r: r["partition_date"])))

    def _under_way(self, dag_id: str) -> bool:
        """Whether a run of a backfill is still to end."""
        params = {"run_type": "backfill", "state": ["queued", "running"], "limit": 1}
        return self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns", params=params)["total_entries"] > 0

    # ------------------------------------------------------------------------------------------------ HTTP

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        return _decoded(self._request(method, path, **arguments))

    def _pages(self, path: str, name: str, **params: Any) -> list[dict[str, Any]]:
        """Every row of a paged list."""
        rows: list[dict[str, Any]] = []
        while True:
            page = self._call("GET", path, params={**params, "limit": 100, "offset": len(rows)})
            rows += page[name]
            if not page[name] or len(rows) >= page["total_entries"]:
                return rows

    def _request(self, method: str, path: str, *, authenticated: bool = True, **arguments: Any) -> httpx.Response:
        try:
            if authenticated and "Authorization" not in self._client.headers:
                self._authenticate()
            response = self._client.request(method, path, **arguments)
            if authenticated and response.status_code == httpx.codes.UNAUTHORIZED:
                self._authenticate()
                response = self._client.request(method, path, **arguments)
        except httpx.ConnectError as error:
            raise Unavailable(f"Airflow does not answer at {self.url}: is it up? (`packshot up`)") from error
        return response

    def _authenticate(self) -> None:
        self._client.headers.pop("Authorization", None)
        response = self._client.post("/auth/token", json=self._login)
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.BAD_REQUEST):
            raise UsageError(
                f"Airflow at {self.url} refuses user {self._login['username']!r}: "
                "set PACKSHOT_AIRFLOW_USER and PACKSHOT_AIRFLOW_PASSWORD"
            )
        response.raise_for_status()
        self._client.headers["Authorization"] = f"Bearer {response.json()['access_token']}"


AWAY = "Airflow does not answer at {}: `packshot status` shows the services, `packshot up` starts them again"


class _Standstill:
    """Notices that a run does not change, and says once why."""

    def __init__(self, warn: Callable[[str], None]):
        self._warn, self._last, self._since, self._said = warn, RunProgress("", 0, 0), time.monotonic(), ""

    def see(self, now: RunProgress) -> None:
        """The state of the run."""
        if now != self._last:
            self._last, self._since, self._said = now, time.monotonic(), ""

    @property
    def is_long(self) -> bool:
        """Whether nothing has changed for STANDSTILL seconds."""
        return time.monotonic() - self._since >= STANDSTILL

    def say(self, why: str) -> None:
        """Warns, if nothing has changed for long enough and this was not said yet."""
        if self.is_long and why and why != self._said:
            self._said = why
            self._warn(f"nothing has changed for {time.monotonic() - self._since:.0f} s: {why}")


def run_page(url: str, dag_id: str, run_id: str) -> str:
    """Address of a run in the UI of the Airflow at `url`."""
    return f"{url.rstrip('/')}/dags/{dag_id}/runs/{quote(run_id, safe='')}"


def _decoded(response: httpx.Response) -> Any:
    if response.status_code in REFUSED:
        raise UsageError(f"Airflow refuses: {_detail(response)}")
    response.raise_for_status()
    return response.json()


def _detail(response: httpx.Response) -> str:
    """The API's own words, on one line."""
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} for {response.request.method} {response.request.url.path}"
    if isinstance(detail, list):
        detail = "; ".join(f"{'.'.join(map(str, item.get('loc', ())))}: {item.get('msg')}" for item in detail)
    return " ".join(str(detail).partition("Failed validating")[0].split())  # what follows repeats the schema


def _run(answer: Mapping[str, Any]) -> AirflowRun:
    started, ended = (answer[name] and datetime.fromisoformat(answer[name]) for name in ("start_date", "end_date"))
    return AirflowRun(answer["dag_run_id"], answer["dag_id"], answer["state"], started, ended)


def _run_path(dag_id: str, run_id: str) -> str:
    return f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"


def _task_name(task: Mapping[str, Any]) -> str:
    return task["task_id"] + (f"[{task['map_index']}]" if task["map_index"] >= 0 else "")


def _backfill_body(dag_id: str, first: date, last: date, conf: Mapping[str, Any]) -> dict[str, Any]:
    """`completed`: a second campaign over the same days gets runs of its own beside the old ones."""
    if first > last:
        raise UsageError(f"the range ends ({last}) before it begins ({first})")
    return {
        "dag_id": dag_id,
        "from_date": datetime(first.year, first.month, first.day, tzinfo=UTC).isoformat(),
        "to_date": datetime(last.year, last.month, last.day, tzinfo=UTC).isoformat(),
        "dag_run_conf": dict(conf),
        "reprocess_behavior": "completed",
        "max_active_runs": 1,
    }
