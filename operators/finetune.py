"""Fine-tune BrushNet: freeze the pictures, train two stages, judge and register, promote what is better.

What passes between the tasks is digests: pictures and weights lie in the object store, so each task may run on another
worker. Checkpoints lie in the worker's state directory: a retry there goes on, one elsewhere begins its stage anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk import BaseOperator, ExceptionRetryPolicy

from operators.base import RETRY_POLICY, Services, listed, open_services

if TYPE_CHECKING:
    from pathlib import Path

    from airflow.sdk import Context

    from pipelines.models.profile import Profile
    from pipelines.training.evaluate import Evaluator
    from pipelines.training.finetune import Finetune, StageName, Trained
    from pipelines.training.loop import TrainOptions


class FinetuneOperator(BaseOperator):
    """Base of the fine-tune's operators: the budgets, which all of them must agree on.

    Numbers arrive from templates as their text.

    :param salient_minutes: training time of stage 1; 0 leaves it out, and stage 2 begins from the weights in use.
    :param salient_steps: steps instead of minutes; empty for none. In steps, a killed training resumes to the bit.
    :param minutes: training time of stage 2.
    :param steps: likewise.
    :param side: width and height of the training pictures, px; empty for the profile's own.
    """

    template_fields: Sequence[str] = ("salient_minutes", "salient_steps", "minutes", "steps", "side")
    ui_color = "#efe6fa"

    def __init__(
        self,
        *,
        salient_minutes: float | str = "{{ params.salient_minutes }}",
        salient_steps: int | str = "{{ params.salient_steps or '' }}",
        minutes: float | str = "{{ params.minutes }}",
        steps: int | str = "{{ params.steps or '' }}",
        side: int | str = "{{ params.side or '' }}",
        retry_policy: ExceptionRetryPolicy = RETRY_POLICY,
        **kwargs: Any,
    ) -> None:
        super().__init__(retry_policy=retry_policy, **kwargs)
        self.salient_minutes = salient_minutes
        self.salient_steps = salient_steps
        self.minutes = minutes
        self.steps = steps
        self.side = side

    def job(self, pictures: Mapping[Any, str]) -> Finetune:
        """The fine-tune of these data sets, by stage."""
        from pipelines.models.profile import load_profile
        from pipelines.settings import get_settings
        from pipelines.training.finetune import Finetune, TrainingStage

        settings = get_settings()
        return Finetune(
            TrainingStage(pictures["salient"], float(self.salient_minutes), _whole(self.salient_steps)),
            TrainingStage(pictures["instance"], float(self.minutes), _whole(self.steps)),
            side=_whole(self.side) or load_profile(settings.profile, settings.models_dir).native_size,
        )


class GatherPicturesOperator(FinetuneOperator):
    """Freeze the pictures of both stages in the store; returns their data sets' digests by stage.

    :param source: of stage 2: `ledger`, approved cutouts of the shop's own catalogue; or `folder`.
    :param folder: on this worker, with `images/` and `masks/`; for `folder`.
    :param salient_folder: of stage 1, likewise; empty: the bundled models' training pictures.
    :param scenes: only cutouts of these scenes' shots. All when empty.
    :param categories: only products of these categories. All when empty.
    """

    template_fields: Sequence[str] = (
        *FinetuneOperator.template_fields,
        "source",
        "folder",
        "salient_folder",
        "scenes",
        "categories",
    )

    def __init__(
        self,
        *,
        source: str = "{{ params.source }}",
        folder: str = "{{ params.folder or '' }}",
        salient_folder: str = "{{ params.salient_folder or '' }}",
        scenes: Sequence[str] | str = "{{ params.scenes | tojson }}",
        categories: Sequence[str] | str = "{{ params.categories | tojson }}",
        execution_timeout: timedelta | None = timedelta(hours=1),
        **kwargs: Any,
    ) -> None:
        super().__init__(execution_timeout=execution_timeout, **kwargs)
        self.source = source
        self.folder = folder
        self.salient_folder = salient_folder
        self.scenes = scenes
        self.categories = categories

    def execute(self, context: Context) -> dict[str, str]:
        """Gather; a parameter that is wrong, or nothing to learn from, fails the task at once."""
        from pipelines.errors import UsageError
        from pipelines.training.finetune import TRAINING, gather

        if self.source == "folder" and not self.folder:
            raise UsageError("source is folder: name the folder")
        services = open_services()
        wanted: dict[StageName, str] = {
            "salient": self.salient_folder or TRAINING,
            "instance": self.folder if self.source == "folder" else self.source,
        }
        planned = self.job(wanted)
        if planned.instance.skipped:
            raise UsageError("stage 2 has nothing to do: give it minutes or steps")
        digests: dict[str, str] = {}
        for stage, source in wanted.items():
            digests[stage] = TRAINING
            if not planned.stage(stage).skipped:
                digests[stage], found = gather(
                    source,
                    services.store,
                    services.settings,
                    _options(services).data,
                    tuple(listed(self.scenes)),
                    tuple(listed(self.categories)),
                )
                self.log.info("pictures of stage %s: %s", stage, found or source)
        return digests


class TrainStageOperator(FinetuneOperator):
    """Train one stage; returns its figures, and its weights as digests: {} where it is left out.

    :param stage: `salient` or `instance`.
    :param pictures: what `gather` returned.
    :param before: what the stage before returned; its weights are where this one begins.
    :param products: held-out products that judge the model while it trains.
    :param seeds: pictures of each.
    :param evaluate_minutes: how often they do; 0: not while it trains.
    """

    template_fields: Sequence[str] = (
        *FinetuneOperator.template_fields,
        "pictures",
        "before",
        "products",
        "seeds",
        "evaluate_minutes",
    )

    def __init__(
        self,
        *,
        stage: Literal["salient", "instance"],
        pictures: Any,
        before: Any = None,
        products: int | str = "{{ params.products }}",
        seeds: int | str = "{{ params.seeds }}",
        evaluate_minutes: float | str = "{{ params.evaluate_minutes }}",
        execution_timeout: timedelta | None = timedelta(hours=6),
        **kwargs: Any,
    ) -> None:
        super().__init__(execution_timeout=execution_timeout, **kwargs)
        self.stage = stage
        self.pictures = pictures
        self.before = before
        self.products = products
        self.seeds = seeds
        self.evaluate_minutes = evaluate_minutes

    def execute(self, context: Context) -> dict[str, Any]:
        """Train, or go on where a killed try stopped."""
        from pipelines.revisions.registry import bring_files, keep_files
        from pipelines.training.finetune import PARTS, begin, train_stage, watching

        job = self.job(self.pictures)
        if job.stage(self.stage).skipped:
            self.log.info("left out: the next stage begins from the weights in use")
            return {}
        services = open_services()
        profile = _profile(services)
        folder = job.folder(profile, services.settings.state_dir)
        models = begin(job, profile, folder)
        if self.before:
            bring_files(services.store, self.before["files"], models / PARTS["salient"])
        evaluator = _evaluator(job, services, profile, folder, int(self.products), int(self.seeds))
        trained = train_stage(
            self.stage,
            job,
            folder,
            services.store,
            _options(services),
            services.settings.photo_max_megapixels,
            watching(evaluator, self.stage, folder, float(self.evaluate_minutes)),
        )
        self.log.info("stage %s: %s", self.stage, dict(trained.figures))
        return {"figures": dict(trained.figures), "files": keep_files(services.store, trained.folder)}


class RegisterRevisionOperator(FinetuneOperator):
    """Judge the trained model and the one in use on the same held-out pictures, and register it with both figures.

    :param pictures: what `gather` returned.
    :param salient: what stage 1 returned.
    :param instance: what stage 2 returned.
    :param products: held-out products.
    :param seeds: pictures of each.
    """

    template_fields: Sequence[str] = (
        *FinetuneOperator.template_fields,
        "pictures",
        "salient",
        "instance",
        "products",
        "seeds",
    )

    def __init__(
        self,
        *,
        pictures: Any,
        salient: Any,
        instance: Any,
        products: int | str = "{{ params.products }}",
        seeds: int | str = "{{ params.seeds }}",
        execution_timeout: timedelta | None = timedelta(hours=6),
        **kwargs: Any,
    ) -> None:
        super().__init__(execution_timeout=execution_timeout, **kwargs)
        self.pictures = pictures
        self.salient = salient
        self.instance = instance
        self.products = products
        self.seeds = seeds

    def execute(self, context: Context) -> dict[str, Any]:
        """Judge and register; returns the revision with its figures."""
        from pipelines.revisions.registry import bring_files
        from pipelines.training.finetune import PARTS, Trained, register_finetune

        services = open_services()
        profile = _profile(services)
        job = self.job(self.pictures)
        folder = job.folder(profile, services.settings.state_dir)
        returned: dict[StageName, Any] = {"salient": self.salient, "instance": self.instance}
        trained: dict[StageName, Trained] = {}
        for stage, made in returned.items():
            if made:
                export = folder / "models" / PARTS[stage]
                bring_files(services.store, made["files"], export)
                trained[stage] = Trained(export, made["figures"])
        evaluator = _evaluator(job, services, profile, folder, int(self.products), int(self.seeds))
        by = f"{context['dag'].dag_id} {context['run_id']}"
        revision = register_finetune(job, profile, trained, evaluator, services.ledger.engine, services.store, by)
        self.log.info("revision %s: %s", revision.revision, revision.comparison)
        return revision.to_json()


class PromoteRevisionOperator(BaseOperator):
    """Use the revision from the next task on, where it is better beyond its confidence interval.

    One that is not stays registered, and that is no failure: a person may promote it with `packshot models promote`.

    :param revision: what `register` returned.
    :param wanted: whether to promote at all.
    """

    template_fields: Sequence[str] = ("revision", "wanted")
    ui_color = "#efe6fa"

    def __init__(
        self,
        *,
        revision: Any,
        wanted: bool | str = "{{ params.promote }}",
        retry_policy: ExceptionRetryPolicy = RETRY_POLICY,
        execution_timeout: timedelta | None = timedelta(minutes=10),
        **kwargs: Any,
    ) -> None:
        super().__init__(retry_policy=retry_policy, execution_timeout=execution_timeout, **kwargs)
        self.revision = revision
        self.wanted = wanted

    def execute(self, context: Context) -> dict[str, Any]:
        """Promote; returns whether it was, and why not."""
        from pipelines.revisions.registry import NotBetter, install, promote

        if str(self.wanted) != "True":
            return {"promoted": False, "reason": "not asked for"}
        services = open_services()
        profile = _profile(services)
        part, revision = self.revision["part"], self.revision["sha256"]
        if profile.ref(part).sha256 == revision:
            return {"promoted": True, "reason": "it was already"}  # the task's earlier try
        try:
            made = promote(
                services.ledger.engine, profile, part, revision, f"{context['dag'].dag_id} {context['run_id']}"
            )
        except NotBetter as refusal:
            self.log.warning("%s", refusal)
            return {"promoted": False, "reason": str(refusal)}
        install(services.ledger.engine, services.store, profile.name, services.settings.state_dir)
        return {"promoted": True, "reason": str(made.comparison)}


def _profile(services: Services) -> Profile:
    """The profile with what is promoted."""
    from pipelines.models.profile import load_profile
    from pipelines.revisions.registry import install

    settings = services.settings
    install(services.ledger.engine, services.store, settings.profile, settings.state_dir)
    return load_profile(settings.profile, settings.models_dir)


def _options(services: Services) -> TrainOptions:
    from pipelines.training.loop import TrainOptions

    settings = services.settings
    return TrainOptions("brushnet", device=settings.compute().device, profile=settings.profile)


def _evaluator(job: Finetune, services: Services, profile: Profile, out: Path, products: int, seeds: int) -> Evaluator:
    from pipelines.training.evaluate import Evaluator
    from pipelines.training.finetune import held_out

    return Evaluator.prepare(
        out / "frozen",
        held_out(job, services.store, _options(services).data),
        services.store,
        profile,
        products=products,
        seeds=seeds,
        max_megapixels=services.settings.photo_max_megapixels,
        compute=services.settings.compute(),
    )


def _whole(value: int | str) -> int | None:
    return int(value) if value != "" else None
