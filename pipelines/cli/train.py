"""`packshot train PART`: train a bundled model, or fine-tune BrushNet in the paper's two stages."""

from __future__ import annotations

import getpass
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pipelines.errors import UsageError

app = typer.Typer()

SHARED = Path(__file__).resolve().parents[3] / "shared" / "training"
TRAINING = "training"
"""As pictures of a stage: those that the bundled models were trained on."""


# `--help` is the part's own where one is named
@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def train(
    context: typer.Context,
    part: Annotated[
        str,
        typer.Argument(
            help="autoencoder, clip, unet, unet_inpaint9, brushnet, brushnet_random, brushnet_salient, "
            "brushnet_control, controlnet_canny, controlnet_inpaint, lora_oak_window, base_high_key, blip, upscaler, "
            "salient or hqsam; or mini, all that paints in one chain."
        ),
    ],
) -> None:
    """Train a bundled model, or resume its training. `packshot train unet --help` lists the options of a part.

    `packshot train brushnet` fine-tunes BrushNet in the paper's two stages, also on your own pictures.
    `packshot train mini` trains the whole chain.
    """
    if part == "--help":
        typer.echo(context.get_help(), nl=False)
        return
    trainers = typer.Typer(add_completion=False)
    if part == "brushnet":
        trainers.command()(fine_tune)
        trainers(context.args, prog_name="packshot train brushnet")
    if part == "mini":
        from pipelines.training.chain import main as chain

        trainers.command()(chain)
        trainers(context.args, prog_name="packshot train mini")
    from pipelines.training.__main__ import main as trainer

    trainers.command()(trainer)
    trainers([part, *context.args], prog_name="packshot train")


def fine_tune(
    instances: Annotated[
        str, typer.Option(help="Stage 2's pictures: training, ledger, or a folder of pairs.")
    ] = TRAINING,
    salient: Annotated[str, typer.Option(help="Stage 1's pictures: training, or a folder of pairs.")] = TRAINING,
    scene: Annotated[list[str] | None, typer.Option(help="Of the ledger: only this scene's shots; repeatable.")] = None,
    category: Annotated[list[str] | None, typer.Option(help="Of the ledger: only this category; repeatable.")] = None,
    salient_minutes: Annotated[float, typer.Option(help="Stage 1; 0: begin from the BrushNet in use.")] = 30.0,
    minutes: Annotated[float, typer.Option(help="Stage 2.")] = 30.0,
    salient_steps: Annotated[int | None, typer.Option(help="Stage 1 in steps instead: resumes exactly.")] = None,
    steps: Annotated[int | None, typer.Option(help="Stage 2 in steps instead.")] = None,
    size: Annotated[int | None, typer.Option(help="Pictures' side, px; the profile's own by default.")] = None,
    batch: int | None = None,
    lr: float | None = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Autocast type: float32 or bfloat16.")] = "float32",
    products: Annotated[int, typer.Option(min=1, help="Held-out products that evaluate it.")] = 12,
    seeds: Annotated[int, typer.Option(min=1, help="Pictures of each of them.")] = 2,
    evaluate_minutes: Annotated[
        float, typer.Option(help="Minutes between two evaluations while it trains; 0: none.")
    ] = 10.0,
    registered: Annotated[
        bool, typer.Option("--register", help="Evaluate the result and keep it as a revision.")
    ] = False,
    promoted: Annotated[
        bool, typer.Option("--promote", help="Register it, and use it where it is better beyond chance.")
    ] = False,
    data: Path = SHARED,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the exported models without --register; the mini profile's own by default."),
    ] = None,
) -> None:
    """Fine-tune BrushNet in the paper's two stages: salient objects, then whole e-commerce products.

    The same command resumes a training that was killed. With several GPUs: accelerate launch -m pipelines.cli.main
    train brushnet.
    """
    from pipelines.contracts import Store
    from pipelines.ledger.postgres import connect
    from pipelines.models.profile import active_profile
    from pipelines.revisions.registry import install, promote
    from pipelines.settings import get_settings
    from pipelines.store import FolderStore, S3Store
    from pipelines.training.evaluate import Evaluator
    from pipelines.training.finetune import (
        PARTS,
        Finetune,
        StageName,
        Trained,
        TrainingStage,
        begin,
        check_learnable,
        gather,
        held_out,
        register_finetune,
        train_stage,
        watching,
    )  # fmt: skip
    from pipelines.training.loop import PROFILE, TrainOptions, together

    registered = registered or promoted
    settings = get_settings()
    if registered:
        store: Store = S3Store(settings)
        engine = connect(settings.database_url)
        install(engine, store, settings.profile, settings.state_dir)
    else:
        store = FolderStore(settings.state_dir / "finetune" / "pictures")
    profile = active_profile()
    compute = settings.compute()
    options = TrainOptions(
        "brushnet", device=compute.device if device == "auto" else device, dtype=dtype, data=data, profile=profile.name
    )
    if not registered and out is None and profile.name != PROFILE.name:
        raise UsageError("say where the trained model goes: --out FOLDER, or --register")
    state, limit = together(options), settings.photo_max_megapixels

    # 1. Freeze the pictures
    def frozen(stage: TrainingStage) -> TrainingStage:
        if stage.skipped:
            return stage
        digest, found = gather(stage.pictures, store, settings, data, tuple(scene or ()), tuple(category or ()))
        if found is not None and state.is_main_process:
            typer.echo(str(found))
        return replace(stage, pictures=digest)

    second = TrainingStage(instances, minutes, steps)
    if second.skipped:
        raise UsageError("stage 2 has nothing to do: give it --minutes or --steps")
    first = TrainingStage(salient, salient_minutes, salient_steps)
    check_learnable(Finetune(first, second), profile)
    job = Finetune(frozen(first), frozen(second), side=size or profile.native_size, batch=batch, lr=lr)
    folder = job.folder(profile, settings.state_dir)

    # 2. Train, evaluating now and then
    with state.main_process_first():
        begin(job, profile, folder)
    evaluator = None
    judges = held_out(job, store, data) if state.is_main_process else []
    if state.is_main_process and (registered or (judges and evaluate_minutes)):
        evaluator = Evaluator.prepare(
            folder / "frozen", judges, store, profile, products=products, seeds=seeds,
            max_megapixels=limit, compute=replace(compute, device=options.device),
        )  # fmt: skip
    trained: dict[StageName, Trained] = {}
    for name in PARTS:
        if not job.stage(name).skipped:
            watch = watching(evaluator, name, folder, evaluate_minutes) if evaluator is not None else None
            trained[name] = train_stage(name, job, folder, store, options, limit, watch)
            if state.is_main_process:
                typer.echo(f"{name}: {json.dumps(trained[name].figures)}")
    if not state.is_main_process:
        return

    # 3. Export, or register and promote
    if evaluator is None or not registered:
        for made in trained.values():
            exported = (out or PROFILE) / made.folder.name
            shutil.copytree(made.folder, exported, dirs_exist_ok=True)
            typer.echo(str(exported))
        return
    revision = register_finetune(job, profile, trained, evaluator, engine, store, getpass.getuser())
    typer.echo(f"revision {revision.revision}: {revision.comparison}")
    if promoted:
        promote(engine, profile, revision.part, revision.revision, getpass.getuser())
        install(engine, store, profile.name, settings.state_dir)
        typer.echo(f"{revision.part} is {revision.revision} now")
