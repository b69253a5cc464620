"""What all operators share: which errors are worth another try, the services, and the link to the run's pictures.

Operators know Airflow and no pixels. This module and its neighbours are imported whenever a DAG file is parsed, so
everything heavy is imported inside `execute`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow.sdk import BaseOperator, BaseOperatorLink, ExceptionRetryPolicy, RetryAction, RetryRule, conf

from pipelines.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey

    from pipelines.ledger.postgres import PostgresLedger
    from pipelines.settings import Settings
    from pipelines.store import S3Store
    from pipelines.workflow import Recipe

GPU_POOL = "gpu"
"""One slot per accelerator. The DAGs name it: a pool set in an operator's constructor is lost when it is mapped."""

PROBLEM = "problem"
"""XCom key under which a task says what stopped publication."""

RETRY_POLICY = ExceptionRetryPolicy(
    rules=[
        RetryRule(exception=UsageError, action=RetryAction.FAIL, reason="a parameter or a file is wrong"),
        RetryRule(exception=IntegrityError, action=RetryAction.FAIL, reason="bytes or records contradict each other"),
    ]
)
"""Whatever is not listed is taken for broken infrastructure and tried again, as often as the DAG allows."""


class RunPage(BaseOperatorLink):
    """The run's shots as pictures, in the operators' page of the plugin. Computed in the task, kept as an XCom."""

    name = "Pictures of this run"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Path of the page, below Airflow's own base path."""
        base = urlsplit(conf.get("api", "base_url", fallback="/")).path.rstrip("/")
        return f"{base}/packshot/runs/{quote(ti_key.run_id, safe='')}"


@dataclass(frozen=True, slots=True)
class Services:
    """What a task works with."""

    settings: Settings
    ledger: PostgresLedger
    store: S3Store

    def recipe(self, scene: str, attempt: str = "") -> Recipe:
        """Profile, with the revisions that are promoted, and device of the settings, and this scene. Raises UsageError
        for a scene that is not there."""
        from pipelines.models.profile import load_profile
        from pipelines.revisions.registry import install
        from pipelines.scenes import load_scene
        from pipelines.workflow import Recipe

        install(self.ledger.engine, self.store, self.settings.profile, self.settings.state_dir)
        profile = load_profile(self.settings.profile, self.settings.models_dir)
        return Recipe(
            profile,
            load_scene(scene),
            attempt=attempt,
            compute=self.settings.compute(),
            max_megapixels=self.settings.photo_max_megapixels,
        )


def open_services() -> Services:
    """Ledger and store of the settings. Called in the task's own process, after the fork."""
    from pipelines.ledger.postgres import PostgresLedger, connect
    from pipelines.settings import get_settings
    from pipelines.store import S3Store

    settings = get_settings()
    return Services(settings, PostgresLedger(connect(settings.database_url)), S3Store(settings))


def listed(value: Sequence[str] | str | None) -> list[str]:
    """A list of names, or its JSON as a template rendered it. A form sends the empty lines of its field too: they are
    no names, and neither is the space around one."""
    items = json.loads(value or "[]") if isinstance(value, str) else value
    return [name for name in (str(item).strip() for item in items or []) if name]


def attempt_of(reprocess: str, run: str) -> str:
    """What a forced recomputation adds to every key of the run: nothing for `missing`, the run's id otherwise."""
    return "" if reprocess == "missing" else run


class PackshotOperator(BaseOperator):
    """Base of the operators: errors that no retry can mend fail at once, and every task links to the run's pictures.

    :param run: id of the run in the ledger; Airflow's own.
    """

    template_fields: Sequence[str] = ("run",)
    operator_extra_links = (RunPage(),)

    # A policy built in the body would be lost when the operator is mapped; a signature's default is kept.
    def __init__(
        self, *, run: str = "{{ run_id }}", retry_policy: ExceptionRetryPolicy = RETRY_POLICY, **kwargs: Any
    ) -> None:
        super().__init__(retry_policy=retry_policy, **kwargs)
        self.run = run
