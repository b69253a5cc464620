"""Keep Airflow's own history short: see `pipelines.services.airflow_history`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowSkipException

from operators.base import PackshotOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


class PruneAirflowOperator(PackshotOperator):
    """Counts Airflow's runs, tasks, events and logs that are older than `days`, and removes them where it is told to.

    :param days: how many days are kept.
    :param apply: None only counts. Otherwise remove, or, if it is not true, skip the task.
    """

    template_fields: Sequence[str] = ("run", "days", "apply")
    ui_color = "#eeeeee"

    def __init__(
        self,
        *,
        days: int | str = "{{ params.days }}",
        apply: bool | str | None = None,
        execution_timeout: timedelta | None = timedelta(hours=2),
        **kwargs: Any,
    ) -> None:
        super().__init__(execution_timeout=execution_timeout, **kwargs)
        self.days = days
        self.apply = apply

    def execute(self, context: Context) -> dict[str, Any]:
        """Count or remove; returns rows by table, logs and their bytes."""
        from pipelines.services.airflow_history import old_history
        from pipelines.settings import get_settings

        if self.apply is not None and str(self.apply) != "True":
            raise AirflowSkipException("it was listed: to remove it, start a run with `Remove`")
        found = old_history(get_settings(), int(self.days), self.apply is not None)
        self.log.info("removed" if found.applied else "can be removed", **asdict(found))
        return asdict(found)
