"""The tasks of `brushnet_finetune`: freeze the pictures, train two stages, evaluate and register, promote.

Tasks pass digests to one another. Pictures and weights lie in the object store, so each task may run on another worker.
Checkpoints lie in the worker's state directory: a retry on the same worker resumes, another worker restarts the stage.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from airflow.sdk import task

from operators.base import RETRY_POLICY, Services, listed, open_services, refuse_unknown

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.models.profile import Profile
    from pipelines.training.evaluate import Evaluator
    from pipelines.training.finetune import Finetune, StageName, Trained
    from pipelines.training.loop import TrainOptions

log = logging.getLogger(__name__)

finetune_task = partial(task, multiple_outputs=False, retry_policy=RETRY_POLICY)


@dataclass(frozen=True, slots=True)
class Form:
    """The fields of the DAG's form.

    `source` of stage 2's pictures: `ledger`, approved cutouts of the shop's own catalogue; `folder`; or `training`.
    `folder` has `images/` and `masks/`, on this worker; `salient_folder` likewise, for stage 1; empty: the bundled
    models' training pictures. `scenes` and `categories` limit the ledger's cutouts; empty: all.
    `salient_minutes` and `minutes` are the training time of stages 1 and 2; 0 leaves a stage out. Steps replace minutes
    where given: a killed training then resumes to the bit. `side` of the pictures, px; None: the profile's own.
    `products` are held-out products that evaluate the model with `seeds` pictures each, every `evaluate_minutes` of
    training (0: only at the end). `promote`: use the revision if it is better.
    """

    source: str
    folder: str
    salient_folder: str
    scenes: list[str]
    categories: list[str]
    salient_minutes: float
    salient_steps: int | None
    minutes: float
    steps: int | None
    side: int | None
    products: int
    seeds: int
    evaluate_minutes: float
    promote: bool

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Self:
        """The form of a run."""
        return cls(**{field.name: params[field.name] for field in fields(cls)})

    def job(self, pictures: Mapping[Any, str], profile: Profile) -> Finetune:
        """The fine-tune of these data sets, by stage."""
        from pipelines.training.finetune import Finetune, TrainingStage

        return Finetune(  # float: the form's 30 and 30.0 are one fine-tune, with one work folder
            TrainingStage(pictures["salient"], float(self.salient_minutes), self.salient_steps),
            TrainingStage(pictures["instance"], float(self.minutes), self.steps),
            side=self.side or profile.native_size,
        )


@finetune_task(execution_timeout=timedelta(hours=1))
def gather(params: Mapping[str, Any] | None = None, dag: Any = None, dag_run: Any = None) -> dict[str, str]:
    """Freeze the pictures of both stages in the store; returns their data sets' digests by stage.

    Raises UsageError for a wrong parameter, and where there is nothing to learn from.
    """
    from pipelines.errors import UsageError
    from pipelines.models.profile import active_profile
    from pipelines.training.finetune import TRAINING
    from pipelines.training.finetune import gather as freeze

    refuse_unknown(dag, dag_run)
    form = Form.of(params or {})
    if form.source == "folder" and not form.folder:
        raise UsageError("source is folder: name the folder")
    services = open_services()
    wanted: dict[StageName, str] = {
        "salient": form.salient_folder or TRAINING,
        "instance": form.folder if form.source == "folder" else form.source,
    }
    planned = form.job(wanted, active_profile())
    if planned.instance.skipped:
        raise UsageError("stage 2 has nothing to do: give it minutes or steps")
    data, limits = _options(services).data, (tuple(listed(form.scenes)), tuple(listed(form.categories)))
    digests: dict[str, str] = {}
    for stage, source in wanted.items():
        digests[stage] = TRAINING
        if not planned.stage(stage).skipped:
            digests[stage], found = freeze(source, services.store, services.settings, data, *limits)
            log.info("pictures of stage %s: %s", stage, found or source)
    return digests


@finetune_task(execution_timeout=timedelta(hours=6))
def train(
    stage: StageName, pictures: Any, before: Any = None, params: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Train one stage, or resume it; returns its figures, and its weights as digests: {} where it is left out.

    `pictures` is what `gather` returned, `before` what the stage before returned: this stage begins from its weights.
    """
    from pipelines.revisions.registry import bring_files, keep_files
    from pipelines.training.finetune import PARTS, begin, train_stage, watching

    form, services = Form.of(params or {}), open_services()
    profile = services.profile()
    job = form.job(pictures, profile)
    if job.stage(stage).skipped:
        log.info("left out: the next stage begins from the weights in use")
        return {}
    folder = job.folder(profile, services.settings.state_dir)
    models = begin(job, profile, folder)
    if before:
        bring_files(services.store, before["files"], models / PARTS["salient"])
    evaluator = _evaluator(form, job, services, profile, folder)
    watch = watching(evaluator, stage, folder, float(form.evaluate_minutes))
    limit = services.settings.photo_max_megapixels
    trained = train_stage(stage, job, folder, services.store, _options(services), limit, watch)
    log.info("stage %s: %s", stage, dict(trained.figures))
    return {"figures": dict(trained.figures), "files": keep_files(services.store, trained.folder)}


@finetune_task(execution_timeout=timedelta(hours=6))
def register(
    pictures: Any,
    salient: Any,
    instance: Any,
    params: Mapping[str, Any] | None = None,
    dag: Any = None,
    run_id: Any = None,
) -> dict[str, Any]:
    """Evaluate the trained model and the one in use on the same held-out pictures; returns the registered revision.

    `pictures` is what `gather` returned, `salient` and `instance` what the two stages returned.
    """
    from pipelines.revisions.registry import bring_files
    from pipelines.training.finetune import PARTS, Trained, register_finetune

    form, services = Form.of(params or {}), open_services()
    profile = services.profile()
    job = form.job(pictures, profile)
    folder = job.folder(profile, services.settings.state_dir)
    returned: dict[StageName, Any] = {"salient": salient, "instance": instance}
    trained: dict[StageName, Trained] = {}
    for stage, made in returned.items():
        if made:
            export = folder / "models" / PARTS[stage]
            bring_files(services.store, made["files"], export)
            trained[stage] = Trained(export, made["figures"])
    evaluator = _evaluator(form, job, services, profile, folder)
    by = f"{dag.dag_id} {run_id}"
    revision = register_finetune(job, profile, trained, evaluator, services.ledger.engine, services.store, by)
    log.info("revision %s: %s", revision.revision, revision.comparison)
    return revision.to_json()


@finetune_task(execution_timeout=timedelta(minutes=10))
def promote(
    revision: Any, params: Mapping[str, Any] | None = None, dag: Any = None, run_id: Any = None
) -> dict[str, Any]:
    """Use the revision from the next task on, if it is better beyond its confidence interval.

    Otherwise it stays registered, which is no failure: a person may promote it with `packshot models promote`.
    Returns whether it was promoted, and why.
    """
    from pipelines.revisions.registry import NotBetter, install
    from pipelines.revisions.registry import promote as promote_revision

    if not (params or {})["promote"]:
        return {"promoted": False, "reason": "not asked for"}
    services = open_services()
    profile, engine = services.profile(), services.ledger.engine
    part, sha256 = revision["part"], revision["sha256"]
    if profile.ref(part).sha256 == sha256:
        return {"promoted": True, "reason": "it was already"}  # the task's earlier try
    try:
        made = promote_revision(engine, profile, part, sha256, f"{dag.dag_id} {run_id}")
    except NotBetter as refusal:
        log.warning("%s", refusal)
        return {"promoted": False, "reason": str(refusal)}
    install(engine, services.store, profile.name, services.settings.state_dir)
    return {"promoted": True, "reason": str(made.comparison)}


def _options(services: Services) -> TrainOptions:
    from pipelines.training.loop import TrainOptions

    settings = services.settings
    return TrainOptions("brushnet", device=settings.compute().device, profile=settings.profile)


def _evaluator(form: Form, job: Finetune, services: Services, profile: Profile, folder: Path) -> Evaluator:
    from pipelines.training.evaluate import Evaluator
    from pipelines.training.finetune import held_out

    return Evaluator.prepare(
        folder / "frozen",
        held_out(job, services.store, _options(services).data),
        services.store,
        profile,
        products=form.products,
        seeds=form.seeds,
        max_megapixels=services.settings.photo_max_megapixels,
        compute=services.settings.compute(),
    )
