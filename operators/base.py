"""What all operators share: the retry policy, the services, and the link to the run's pictures.

Operators know Airflow and no pixels. A parsed DAG file imports these modules, so they import heavy libraries inside
`execute`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow.sdk import BaseOperator, BaseOperatorLink, ExceptionRetryPolicy, RetryAction, RetryRule, conf
from airflow.sdk.exceptions import DagRunTriggerException

from pipelines.contracts import Reprocess
from pipelines.errors import IntegrityError, PackshotError, UsageError

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import TaskInstanceKey

    from pipelines.ledger.postgres import PostgresLedger
    from pipelines.models.profile import Profile
    from pipelines.settings import Settings
    from pipelines.store import S3Store
    from pipelines.workflow import Recipe

GPU_POOL = "gpu"
"""One slot per accelerator. The DAGs name it: a pool set in an operator's constructor is lost when it is mapped."""

GPU_QUEUE = "gpu"
"""Celery workers of machines with an accelerator take tasks of this queue. Other executors ignore it."""

TRIGGERED_BY = "triggered_by"
"""A run's conf may have this key besides the form's fields: what a caller of the API says of itself."""

GROUP = "group"
"""Key of the conf of a run that another one started for its next channel: the id of the first run of them all."""

DAY = "day"
"""Key of the conf of such a run of a campaign: the first run's partition, which Airflow gives to no run of a task."""

CHANNELS = "{{ params.get('channels') | tojson }}"
"""Template: the channels that were named, as JSON."""

CHANNEL = "{{ (params.get('channels') or [''])[0] }}"
"""Template: the channel that a run is for, the first of those named; empty means the scene's own."""

PROBLEM = "problem"
"""XCom key under which a task says what stopped publication."""

REMEDY = "mend it, then clear the task and what is downstream: finished steps are reused"
"""What to do about a task that failed for good."""

MOST_OF_AN_ERROR = 300
"""Characters of an error's first line that are kept."""

RETRY_POLICY = ExceptionRetryPolicy(
    rules=[
        RetryRule(exception=UsageError, action=RetryAction.FAIL, reason="a parameter or a file is wrong"),
        RetryRule(exception=IntegrityError, action=RetryAction.FAIL, reason="bytes or records contradict each other"),
    ]
)
"""Any other error counts as broken infrastructure and is retried, as often as the DAG allows."""


def one_line(error: BaseException) -> str:
    """An error for people: the whole of packshot's own, of another its type and the beginning of its first line."""
    if isinstance(error, PackshotError):
        return " ".join(str(error).split())
    text = next(iter(str(error).splitlines()), "")[:MOST_OF_AN_ERROR]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def note_failure(context: Context) -> None:
    """A task failed for good: keep in the ledger which one and why, for whoever closes the run and notifies people.

    Airflow calls it in the task's process, or, if that was killed, in the DAG processor's.
    """
    from pipelines.ledger.endings import note_failure as note
    from pipelines.ledger.postgres import connect
    from pipelines.settings import get_settings

    task, error = context["ti"], context.get("exception")
    shard = f"[{task.map_index}]" if task.map_index is not None and task.map_index >= 0 else ""
    cause = one_line(error) if isinstance(error, BaseException) else "its process was killed"
    reason = f"task {task.task_id}{shard} failed ({cause}); {REMEDY}"
    note(connect(get_settings().database_url), task.run_id, task.dag_id, reason, dict(context["params"]))


class RunPage(BaseOperatorLink):
    """Link to the run's pictures, in the plugin's page for operators. The task computes it and keeps it as an XCom."""

    name = "Pictures of this run"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Path of the page, below Airflow's own base path."""
        base = urlsplit(conf.get("api", "base_url", fallback="/")).path.rstrip("/")
        return f"{base}/packshot/runs/{quote(ti_key.run_id, safe='')}"


@dataclass(frozen=True, slots=True)
class Services:
    """Settings, ledger and store of a task."""

    settings: Settings
    ledger: PostgresLedger
    store: S3Store

    def profile(self) -> Profile:
        """The profile of the settings, with the promoted revisions."""
        from pipelines.models.profile import load_profile
        from pipelines.revisions.registry import install

        install(self.ledger.engine, self.store, self.settings.profile, self.settings.state_dir)
        return load_profile(self.settings.profile, self.settings.models_dir)

    def recipe(self, scene: str, reprocess: str, run: str, channel: str = "") -> Recipe:
        """Profile of the settings, and this scene for its own channel or another. Raises UsageError for an unknown
        scene or channel. The device is not asked for.

        A forced recomputation (`reprocess`) adds the run's id to every key of the run. Runs for several channels add
        that of the first: what they share is computed again once.
        """
        from pipelines.ledger.embeddings import Embeddings
        from pipelines.ledger.reports import first_of_group
        from pipelines.scenes import load_scene
        from pipelines.vision.credentials import find_credentials
        from pipelines.vision.reader import find_reader
        from pipelines.workflow import Recipe

        look = load_scene(scene, channel=channel)
        return Recipe(
            self.profile(),
            look,
            attempt=Reprocess(reprocess).attempt(first_of_group(self.ledger.engine, run)),
            max_megapixels=self.settings.photo_max_megapixels,
            credentials=find_credentials(self.settings),
            reader=find_reader(look.checks.read_text, self.settings),
            keep_encoding=Embeddings(self.ledger.engine, self.store).keep,
        )


def open_services() -> Services:
    """Ledger and store of the settings. Called in the task's own process, after the fork."""
    from pipelines.ledger.postgres import PostgresLedger, connect
    from pipelines.settings import get_settings
    from pipelines.store import S3Store

    settings = get_settings()
    return Services(settings, PostgresLedger(connect(settings.database_url)), S3Store(settings))


def refuse_unknown(dag: Any, dag_run: Any) -> None:
    """Raise UsageError for a key of a run's conf that is no field of the DAG's form.

    Airflow accepts such a key and nothing reads it, so a run with a misspelt `skus` would work on the whole feed.
    """
    known = {*dag.params, TRIGGERED_BY, GROUP, DAY}
    for key in dag_run.conf or {}:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            remedy = f"is it {near[0]!r}?" if near else f"it has {', '.join(sorted(dag.params))}"
            raise UsageError(f"{dag.dag_id} has no parameter {key!r}: {remedy}")


def start_run(dag_id: str, run: str, conf: dict[str, Any]) -> DagRunTriggerException:
    """What a task raises to start a run of a DAG, unless it was started before. (The standard provider's operator
    imports 200 modules.)"""
    return DagRunTriggerException(
        trigger_dag_id=dag_id,
        dag_run_id=run,
        conf=conf,
        reset_dag_run=False,
        skip_when_already_exists=True,
        wait_for_completion=False,
        allowed_states=[],
        failed_states=[],
        poke_interval=60,
        deferrable=False,
    )


def listed(value: Sequence[str] | str | None) -> list[str]:
    """A list of names, or its JSON as a template rendered it. A form sends the empty lines of its field too: they are
    no names, and neither is the space around one."""
    items = json.loads(value or "[]") if isinstance(value, str) else value
    return [name for name in (str(item).strip() for item in items or []) if name]


class PackshotOperator(BaseOperator):
    """Base of the operators: bad parameters and damaged data fail without a retry; every task links to the pictures.

    :param run: id of the run in the ledger; Airflow's own.
    """

    template_fields: Sequence[str] = ("run",)
    operator_extra_links = (RunPage(),)

    # A mapped operator keeps a default of the signature, but loses a policy that the body sets.
    def __init__(
        self, *, run: str = "{{ run_id }}", retry_policy: ExceptionRetryPolicy = RETRY_POLICY, **kwargs: Any
    ) -> None:
        super().__init__(retry_policy=retry_policy, **kwargs)
        self.run = run
