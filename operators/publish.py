"""Check the tables, publish the images as one set, report on the run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk.exceptions import AirflowFailException

from operators.base import PROBLEM, PackshotOperator, open_services
from operators.tables import (
    catalogue_rows,
    check_table,
    grounds_for_publication,
    publication_rows,
    score_rows,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from pipelines.ledger.reports import Report


class CheckTableOperator(PackshotOperator):
    """Validates one table of the run against its suite; a failed critical expectation stops publication.

    :param table: `catalogue`, the products as they were read; or `scores`, every verdict of the run.
    """

    template_fields: Sequence[str] = ("run", "table")
    ui_color = "#e8f3e6"

    def __init__(
        self,
        *,
        table: Literal["catalogue", "scores"],
        execution_timeout: timedelta | None = timedelta(minutes=30),
        **kwargs: Any,
    ) -> None:
        super().__init__(execution_timeout=execution_timeout, **kwargs)
        self.table = table

    def execute(self, context: Context) -> dict[str, Any]:
        """Validate; returns the digest of the validation document."""
        services = open_services()
        shots = services.ledger.shots(self.run)
        if self.table == "catalogue":
            rows = catalogue_rows(shots)
        else:
            rows = score_rows(shots, services.ledger.chosen(self.run, shots))
        return check_table(self, services, context, self.table, rows)


class PublishOperator(PackshotOperator):
    """Encodes images that passed their checks or were approved, checks them as one set, publishes all or none.

    From a defective set nothing is published, and the task is not retried. After the cause is removed, clear this task
    or start another run: both find the encoded images by their keys.
    """

    template_fields: Sequence[str] = ("run", "scene", "reprocess")
    ui_color = "#e8f3e6"

    def __init__(
        self,
        *,
        scene: str = "{{ params.scene }}",
        reprocess: str = "{{ params.reprocess }}",
        execution_timeout: timedelta | None = timedelta(hours=2),
        **kwargs: Any,
    ) -> None:
        super().__init__(execution_timeout=execution_timeout, **kwargs)
        self.scene = scene
        self.reprocess = reprocess

    def execute(self, context: Context) -> dict[str, Any]:
        """Publish; returns how many images the set has, and how many of them are new."""
        from pipelines.catalogue.feed import published_feed
        from pipelines.contracts import Artifact, Publication, State
        from pipelines.stages import stage
        from pipelines.store import object_name
        from pipelines.workflow import Limits, run_stage

        services = open_services()
        ledger = services.ledger
        recipe = services.recipe(self.scene, self.reprocess, self.run)

        # 1. What may be shown
        shots = ledger.shots(self.run)
        grounds = grounds_for_publication(services, shots, ledger.chosen(self.run, shots))
        chosen = [shot for shot in shots if shot.sku in grounds]

        # 2. Encode it
        limits = Limits(services.settings.batch_size, services.settings.shot_seconds)
        run_stage(stage("publish"), self.run, chosen, recipe, ledger, services.store, limits)
        steps = ledger.chosen(self.run, chosen)
        encoded = [shot for shot in chosen if steps[shot.sku]["publish"].state is State.DONE]

        # 3. Check it as one set
        rows = publication_rows(encoded, steps, grounds, recipe.scene.channel)
        checked = check_table(self, services, context, "publication", rows)

        # 4. Show it, all at once
        titles, bucket = {shot.sku: shot.product.title for shot in encoded}, services.settings.s3_bucket
        feed = published_feed(
            (row["sku"], titles[row["sku"]], f"s3://{bucket}/{object_name(row['digest'])}", row["digest"])
            for row in rows
        )
        digest = services.store.put(feed, "text/csv")
        new = ledger.publish(
            self.run, [Publication(row["sku"], row["scene"], row["channel"], row["digest"]) for row in rows]
        )
        ledger.attach(self.run, Artifact(digest, "feed", "text/csv", len(feed)))  # never a feed of what is not shown
        self.log.info("published", images=len(rows), new=new)
        return {"images": len(rows), "new": new, **checked}


class SummaryOperator(PackshotOperator):
    """Closes the run in the ledger and logs the outcome of every shot.

    The task, and with it the run, fails if a shot failed or something stopped the run. Rejected and held shots are
    ordinary outcomes.

    :param checks: ids of the tasks that may have stopped the run or its publication.
    """

    ui_color = "#f4ecd8"

    def __init__(
        self, *, checks: Sequence[str], execution_timeout: timedelta | None = timedelta(minutes=10), **kwargs: Any
    ) -> None:
        super().__init__(execution_timeout=execution_timeout, **kwargs)
        self.checks = checks

    def execute(self, context: Context) -> dict[str, Any]:
        """Sum up; returns the report without its rows."""
        from pipelines.ledger.reports import report

        ledger = open_services().ledger
        told = [context["ti"].xcom_pull(task_ids=task_id, key=PROBLEM) for task_id in self.checks]
        problem = next((problem for problem in told if problem), None)
        ledger.settle(self.run)
        so_far = report(ledger.engine, self.run)
        planned = bool(so_far.channel)  # `plan` names it; what opens a run in its place does not
        failed = bool(problem or so_far.failed or so_far.pending or not planned)
        ledger.finish_run(self.run, "failed" if failed else "success", problem)
        found = report(ledger.engine, self.run)
        self.log.info("what became of run %s\n%s", self.run, as_table(found))
        if problem:
            raise AirflowFailException(f"the run was stopped: {problem['reason']}")
        if not planned:
            raise AirflowFailException("the run was not planned: see the log of `plan`")
        if failed:
            raise AirflowFailException(f"{found.failed} of {found.products} shots failed; the log has a table of them")
        return {name: value for name, value in found.to_json().items() if name not in ("shots", "params")}


def as_table(report: Report) -> str:
    """The report as text for a task's log."""
    lines = [
        f"{report.products} products: {report.published} published, {report.held} held, {report.rejected} rejected, "
        f"{report.failed} failed",
        f"{'stage':<10} {'computed':>8} {'reused':>8} {'seconds':>9}",
    ]
    for stage, count in report.steps.items():
        lines.append(f"{stage:<10} {count.computed:>8} {count.reused:>8} {report.seconds[stage]:>9.1f}")
    lines += [f"row {shot.row:<5} {shot.state:<10} {shot.sku}  {shot.reason}" for shot in report.shots]
    return "\n".join(lines)
