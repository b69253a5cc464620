"""Start the run that goes on where one left shots: see `pipelines.ledger.waves`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from operators.base import TRIGGERED_BY, PackshotOperator, Services, open_services, start_run

if TYPE_CHECKING:
    from airflow.sdk import Context


class NextWaveOperator(PackshotOperator):
    """Starts the same DAG with the same parameters, if this run left shots to a next wave. Clearing it starts no second
    one.

    :param triggered_by: who or what asked for the run.
    """

    template_fields: Sequence[str] = ("run", "triggered_by")
    ui_color = "#f4ecd8"

    def __init__(
        self,
        *,
        triggered_by: str,
        execution_timeout: timedelta | None = timedelta(minutes=10),
        **kwargs: Any,
    ) -> None:
        super().__init__(execution_timeout=execution_timeout, **kwargs)
        self.triggered_by = triggered_by

    def execute(self, context: Context) -> None:
        """Start it, or say why not."""
        from pipelines.ledger.waves import next_wave, waiting

        services = open_services()
        left = waiting(services.ledger.engine, self.run)
        if not left:
            self.log.info("nothing was left to a next wave")
            return
        if is_taken_over(services, self.run):
            self.log.info("a later run has read the feed anew: it does what this one left", shots=left)
            return
        self.log.info("starting the next wave", shots=left, run=next_wave(self.run))
        conf = dict(context["params"]) | {TRIGGERED_BY: self.triggered_by}
        if conf.get("channels"):
            conf["channels"] = conf["channels"][:1]  # the others have their own waves
        if "feed" in conf:
            conf["feed"] = None  # the wave knows its manifest; naming it would make it the feed that was named last
        raise start_run(context["dag"].dag_id, next_wave(self.run), conf)


def is_taken_over(services: Services, run: str) -> bool:
    """Whether a later run of the same selection has read the same feed anew: it finds what `run` left."""
    from pipelines.catalogue.manifest import read_manifest
    from pipelines.ledger.waves import feeds_since

    own, later = feeds_since(services.ledger.engine, run)
    source = read_manifest(services.store, own).source
    return any(read_manifest(services.store, digest).source == source for digest in later)
