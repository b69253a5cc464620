"""A run for several channels: each channel has a run of its own, and each run starts the next one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowSkipException

from operators.base import CHANNELS, DAY, GROUP, TRIGGERED_BY, PackshotOperator, listed, open_services, start_run
from operators.plan import DAY_OF_RUN, WHO
from pipelines.contracts import run_of_channel

if TYPE_CHECKING:
    from airflow.sdk import Context


class NextChannelOperator(PackshotOperator):
    """Starts the run of the next channel, which starts the one after it. Skipped where there is no further channel.

    That run has this one's parameters, and the very products that this one read. Both may go at the same time: a step
    that both need has one key, so one of them computes it, and the other waits and finds it.

    :param channels: names of channels; this run is for the first.
    :param forecast_only: start nothing: a dry run counts all channels itself.
    :param day: a campaign's day; empty where it has none.
    :param triggered_by: who or what asked for the first run.
    """

    template_fields: Sequence[str] = ("run", "channels", "forecast_only", "day", "triggered_by")
    ui_color = "#f4ecd8"

    def __init__(
        self,
        *,
        channels: Sequence[str] | str = CHANNELS,
        forecast_only: bool | str = False,
        day: str = DAY_OF_RUN,
        triggered_by: str = WHO,
        execution_timeout: timedelta | None = timedelta(minutes=10),
        **kwargs: Any,
    ) -> None:
        super().__init__(execution_timeout=execution_timeout, **kwargs)
        self.channels = channels
        self.forecast_only = forecast_only
        self.day = day
        self.triggered_by = triggered_by

    def execute(self, context: Context) -> None:
        """Ask Airflow for the run."""
        from pipelines.ledger.reports import feed_for, first_of_group

        rest = list(dict.fromkeys(listed(self.channels)))[1:]
        if not rest or str(self.forecast_only) == "True":
            raise AirflowSkipException("no further channel")
        engine = open_services().ledger.engine
        group = first_of_group(engine, self.run)
        conf = dict(context["params"]) | {"channels": rest, GROUP: group, TRIGGERED_BY: self.triggered_by}
        if "feed" in conf:
            conf["feed"] = feed_for(engine, self.run)
        if self.day:
            conf[DAY] = self.day
        self.log.info("next channel", channel=rest[0], of=len(rest))
        raise start_run(context["dag"].dag_id, run_of_channel(group, rest[0]), conf)
