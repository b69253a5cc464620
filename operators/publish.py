"""Check the tables, publish the images as one set, report on the run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from more_itertools import chunked

from operators.base import CHANNEL, CHANNELS, PROBLEM, REMEDY, PackshotOperator, Services, listed, open_services
from operators.tables import attach_feed, check_table, images_of, publication_columns

if TYPE_CHECKING:
    from airflow.sdk import Context

    from pipelines.ledger.reports import Report, ReportedShot


SHOTS_AT_ONCE = 500
"""Shots whose images are encoded before the next are read from the ledger."""

NEXT_CHANNEL, NEXT_WAVE = "next_channel", "next_wave"
"""Ids of the tasks that start the runs after a run."""

SAMPLE = 200
"""Unchanged images that are looked for in the store."""

SHOTS_LOGGED = 200
"""Shots that the summary names; `packshot report` has all of them."""


class CheckTableOperator(PackshotOperator):
    """Validates one table of the run against its suite; a failed critical expectation stops publication. A run without
    shots has no table: the task is skipped, and so is publication.

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
        from pipelines.ledger import checked

        services = open_services()
        if not services.ledger.has_shots(self.run):
            raise AirflowSkipException("the run selected no shot: a dry run, or `plan` failed")
        read = checked.catalogue if self.table == "catalogue" else checked.scores
        with services.ledger.engine.connect() as connection:
            rows = read(connection, self.run)
        return check_table(self, services, context, self.table, rows)


class PublishOperator(PackshotOperator):
    """Encodes images that passed their checks or were approved, checks them as one set, publishes all or none.

    From a defective set nothing is published, and the task is not retried. After the cause is removed, clear this task
    or start another run: both find the encoded images by their keys.
    """

    template_fields: Sequence[str] = ("run", "scene", "channel", "reprocess")
    ui_color = "#e8f3e6"

    def __init__(
        self,
        *,
        scene: str = "{{ params.scene }}",
        channel: str = CHANNEL,
        reprocess: str = "{{ params.reprocess }}",
        execution_timeout: timedelta | None = timedelta(hours=2),
        **kwargs: Any,
    ) -> None:
        super().__init__(execution_timeout=execution_timeout, **kwargs)
        self.scene = scene
        self.channel = channel
        self.reprocess = reprocess

    def execute(self, context: Context) -> dict[str, Any]:
        """Publish; returns how many images the set has, and how many of them are new."""
        from pipelines.ledger import checked
        from pipelines.runs.encodings import find_encoded
        from pipelines.stages import stage
        from pipelines.workflow import Limits, run_stage

        services = open_services()
        ledger = services.ledger
        recipe = services.recipe(self.scene, self.reprocess, self.run, self.channel)

        # 1. Encode what may be shown: of this run's shots, and of earlier ones that somebody decided about since
        limits = Limits(services.settings.batch_size, services.settings.shot_seconds)
        gone = True
        while gone:
            ledger.adopt_unsettled(self.run)
            with ledger.engine.connect() as connection:
                positions = checked.publishable(connection, self.run)
            lacking = find_encoded(ledger.engine, self.run, positions, stage("publish"), recipe)
            for some in chunked(lacking, SHOTS_AT_ONCE):
                shots = ledger.shots_at(self.run, some)
                run_stage(stage("publish"), self.run, shots, recipe, ledger, services.store, limits)

            # 2. Ask the store for what was encoded before; what it has lost is encoded again
            gone = self._gone(services)

        # 3. Check it as one set
        rows = publication_columns(services, self.run, recipe.scene)
        result = check_table(self, services, context, "publication", rows)

        # 4. Show it, all at once, and take back what is shown of products that left the feed
        images = images_of(rows)
        del rows
        new = ledger.publish(self.run, images)
        withdrawn = ledger.withdraw_gone()
        ledger.settle(self.run)
        attach_feed(services, self.run)
        self.log.info("published", images=len(images), new=new, withdrawn=withdrawn)
        return {"images": len(images), "new": new, "withdrawn": withdrawn, **result}

    def _gone(self, services: Services) -> bool:
        """Take back the images that the store has lost: all that this run reuses are looked for, and a sample of what
        did not change. Returns whether there was one."""
        from pipelines.ledger import checked

        with services.ledger.engine.connect() as connection:
            digests = checked.to_ask_for(connection, self.run, SAMPLE)
        lost = services.store.lacking(digests)
        for digest in sorted(lost):
            self.log.warning("the store has lost an image; `packshot verify` looks for others", digest=digest)
        return bool(services.ledger.withdraw(sorted(lost)))


class SummaryOperator(PackshotOperator):
    """Closes the run in the ledger and logs what became of it, with the shots that were not published.

    The task, and with it the run, fails if a shot failed, something stopped the run, or a run after it was not started.
    Rejected and held shots are ordinary outcomes.

    :param checks: ids of the tasks that may have stopped the run or its publication.
    :param starts: ids of the tasks that start the runs after this one: of other channels, of the next wave.
    """

    template_fields: Sequence[str] = ("run", "channels")

    ui_color = "#f4ecd8"

    def __init__(
        self,
        *,
        checks: Sequence[str],
        starts: Sequence[str] = (),
        channels: Sequence[str] | str = CHANNELS,
        execution_timeout: timedelta | None = timedelta(minutes=10),
        **kwargs: Any,
    ) -> None:
        super().__init__(execution_timeout=execution_timeout, **kwargs)
        self.checks = checks
        self.starts = starts
        self.channels = channels

    def execute(self, context: Context) -> dict[str, Any]:
        """Sum up; returns the report without its rows."""
        from pipelines.contracts import ShotState
        from pipelines.ledger.reports import report, reported_shots
        from pipelines.ledger.spot_checks import draw

        services = open_services()
        ledger = services.ledger
        told = [context["ti"].xcom_pull(task_ids=task_id, key=PROBLEM) for task_id in self.checks]
        problem = next((problem for problem in told if problem), None)
        ledger.settle(self.run)
        so_far = report(ledger.engine, self.run, with_shots=False)
        noted = (so_far.problem or {}).get("reason", "")
        if missing := self._not_started(services, context, noted):
            problem = (problem or {}) | {"reason": "; ".join([*([problem["reason"]] if problem else []), *missing])}
        planned = bool(so_far.channel)  # `plan` names it; what opens a run in its place does not
        failed = bool(problem or so_far.failed or so_far.pending or not planned)
        ledger.finish_run(self.run, "failed" if failed else "success", problem)
        drawn = draw(ledger.engine, self.run, services.settings.spot_checks)
        self.log.info("drawn for a spot check", images=len(drawn))
        found = report(ledger.engine, self.run, with_shots=False)
        others = reported_shots(ledger.engine, self.run, [s for s in ShotState if s != "published"], SHOTS_LOGGED)
        self.log.info("what became of run %s\n%s", self.run, as_table(found, others))
        if problem:
            raise AirflowFailException(f"the run failed: {problem['reason']}")
        if not planned:
            raise AirflowFailException("the run was not planned: see the log of `plan`")
        if failed:
            raise AirflowFailException(f"{found.failed} of {found.products} shots failed; the log has a table of them")
        return {name: value for name, value in found.to_json().items() if name not in ("shots", "params")}

    def _not_started(self, services: Services, context: Context, noted: str) -> list[str]:
        """What should have been started after this run and was not, each with the cause and the remedy. `noted` is the
        failure that the ledger knows of."""
        from pipelines.ledger.waves import waiting

        if not self.starts:
            return []
        states = context["ti"].get_task_states(
            dag_id=context["dag"].dag_id, task_ids=list(self.starts), run_ids=[self.run]
        )
        further = list(dict.fromkeys(listed(self.channels)))[1:]
        left = waiting(services.ledger.engine, self.run)
        awaited = {
            NEXT_CHANNEL: f"the runs for {', '.join(further)} were not started" if further else "",
            NEXT_WAVE: f"{left} shots were left to a next wave, and it was not started" if left else "",
        }
        missing = []
        for task_id in self.starts:
            state = states.get(self.run, {}).get(task_id)
            if not awaited[task_id] or state not in ("failed", "upstream_failed"):
                continue
            cause = f"task {task_id} failed"
            if state == "upstream_failed":
                missing.append(awaited[task_id])  # the remedy of what failed before starts it too
            elif noted.startswith(cause):
                missing.append(f"{awaited[task_id]}: {noted}")
            else:
                missing.append(f"{awaited[task_id]}: {cause}, see its log; {REMEDY}")
        return missing


def as_table(report: Report, shots: Sequence[ReportedShot]) -> str:
    """The report as text for a task's log, with the shots that were not published."""
    lines = [
        f"{report.products} products: {report.published} published, {report.held} held, {report.rejected} rejected, "
        f"{report.failed} failed",
        f"{'stage':<10} {'computed':>8} {'reused':>8} {'seconds':>9}",
    ]
    for stage, count in report.steps.items():
        lines.append(f"{stage:<10} {count.computed:>8} {count.reused:>8} {report.seconds[stage]:>9.1f}")
    lines += [f"row {shot.row:<5} {shot.state:<10} {shot.sku}  {shot.reason}" for shot in shots]
    return "\n".join(lines)
