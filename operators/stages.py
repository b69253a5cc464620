"""One operator a stage: a shard in, a summary out. Models are loaded once a shard, and only if a step is missing.

An unusable photo or a shot past its time limit costs that shot only. Broken infrastructure fails the task; the retry
finds every finished step by its key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from operators.base import CHANNEL, PackshotOperator, open_services

if TYPE_CHECKING:
    from airflow.sdk import Context

    from pipelines.contracts import Shot, Step
    from pipelines.settings import Compute

REASONS_KEPT = 20
"""Most frequent reasons in a summary; the ledger has all of them."""


class StageOperator(PackshotOperator):
    """Brings one shard of the run through one stage.

    :param shard: number of the shard, as `plan` cut them.
    :param scene: the scene's name.
    :param channel: the channel's name; empty means the scene's own.
    :param reprocess: `missing` reuses every finished step; `failed` and `all` compute again (`Reprocess`).
    :param batch_size: shots computed at once, if the stage supports it; the setting by default.
    :param shot_seconds: time limit of one shot, in seconds of computing; the setting by default. A shot past it ends
        as `failed`, and the shard continues. ``execution_timeout`` is for the whole shard, and fails the task.
    """

    template_fields: Sequence[str] = ("run", "shard", "scene", "channel", "reprocess")
    ui_color = "#e6f0fa"
    stage: ClassVar[str]

    def __init__(
        self,
        *,
        shard: int,
        scene: str = "{{ params.scene }}",
        channel: str = CHANNEL,
        reprocess: str = "{{ params.reprocess }}",
        batch_size: int | None = None,
        shot_seconds: float | None = None,
        execution_timeout: timedelta | None = timedelta(hours=6),
        map_index_template: str | None = "shard {{ task.shard }}",
        **kwargs: Any,
    ) -> None:
        super().__init__(execution_timeout=execution_timeout, map_index_template=map_index_template, **kwargs)
        self.shard = shard
        self.scene = scene
        self.channel = channel
        self.reprocess = reprocess
        self.batch_size = batch_size
        self.shot_seconds = shot_seconds

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the stage; returns its `StageSummary` as JSON."""
        from pipelines.accelerators import lease
        from pipelines.stages import stage as load_stage
        from pipelines.workflow import Limits, run_stage

        services = open_services()
        shots = services.ledger.shots(self.run, int(self.shard))
        limits = Limits(
            batch_size=self.batch_size or services.settings.batch_size,
            shot_seconds=self.shot_seconds or services.settings.shot_seconds,
        )

        def hardware() -> Compute:
            if services.settings.device in ("auto", "cuda"):
                lease()
            return services.settings.compute()

        def progress(shot: Shot, step: Step) -> None:
            self.log.info("shot", sku=shot.sku, state=step.state, reason=step.reason, seconds=round(step.seconds, 2))

        summary = run_stage(
            load_stage(self.stage),
            self.run,
            shots,
            services.recipe(self.scene, self.reprocess, self.run, self.channel),
            services.ledger,
            services.store,
            limits,
            progress,
            hardware,
        )
        self.log.info("stage", **{k: v for k, v in asdict(summary).items() if k != "reasons"})
        return asdict(summary) | {"reasons": dict(Counter(summary.reasons).most_common(REASONS_KEPT))}


class CutoutOperator(StageOperator):
    """Separate the product from its photo: soft matte and decontaminated colour."""

    stage = "cutout"


class DescribeOperator(StageOperator):
    """Caption, tags and colour of the product, for the scene's prompt."""

    stage = "describe"


class GenerateOperator(StageOperator):
    """Inpaint the scene around the placed product; seeds are tried until one does not overcomplete it."""

    stage = "generate"


class UpscaleOperator(StageOperator):
    """Enlarge the scene and lay the original product pixels over it."""

    stage = "upscale"


class InspectOperator(StageOperator):
    """Measure the image; what fails a check is held back with the reason, and can be reviewed at once."""

    stage = "inspect"

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the stage, then settle the shard; returns the stage's summary."""
        summary = super().execute(context)
        open_services().ledger.settle(self.run, int(self.shard))
        return summary
