"""`packshot shoot`: a photo or a catalogue through every stage, in one process and without services."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from pipelines.cli.console import (
    AsJson,
    ChannelName,
    SceneName,
    answer,
    as_warnings,
    exit_code,
    progress_bar,
    table,
    visible,
)
from pipelines.errors import UsageError

if TYPE_CHECKING:
    from pipelines.contracts import Shot, Step
    from pipelines.runs.local import Outcome
    from pipelines.workflow import Recipe

app = typer.Typer()


@app.command()
def shoot(
    source: Annotated[
        Path, typer.Argument(metavar="IMAGE|CATALOG", help="A photo, or a catalogue: CSV, TSV or Merchant XML.")
    ],
    scene: SceneName,
    out_dir: Annotated[Path, typer.Option("--out", "-o", help="Folder for the images and the contact sheet.")],
    channel: ChannelName = "",
    seed: Annotated[int | None, typer.Option(min=0, help="First seed to try, instead of the scene's.")] = None,
    method: Annotated[str | None, typer.Option(help="Inpainting method instead of the scene's.")] = None,
    mask_guidance: Annotated[
        bool, typer.Option("--mask-guidance/--no-mask-guidance", help="Bound the ControlNet by the product mask.")
    ] = True,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N products.")] = None,
    as_json: AsJson = False,
) -> None:
    """Take a photo or a catalogue through every stage in this process, without services.

    After an interrupt, the same command goes on: it reuses the finished steps in the output folder.
    """
    from pipelines.quality.likeness import find_twins
    from pipelines.runs.local import read_record
    from pipelines.runs.local import shoot as run_shoot
    from pipelines.settings import get_settings

    recipe = _recipe(scene, channel=channel, seed=seed, method=method, mask_guidance=mask_guidance)
    with progress_bar() as progress:
        bars: dict[str, Any] = {}

        def note(sentence: str) -> None:
            progress.console.print(visible(sentence), soft_wrap=True)

        def started(stage: str, shots: int) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=0, note="")
            progress.update(bars[stage], total=(progress.tasks[bars[stage]].total or 0) + shots)

        def done(stage: str, shot: Shot, step: Step) -> None:
            words = f"{shot.sku}: {step.reason}" if step.reason else shot.sku
            progress.update(bars[stage], advance=1, note=" ".join(visible(words).split()))

        def written(outcome: Outcome) -> None:
            if outcome.picture and not as_json:
                progress.console.print(visible(str(outcome.picture)), markup=False, highlight=False, soft_wrap=True)

        def took_up(steps: int, shots: int) -> None:
            note(f"reused {steps} finished steps of {shots} product{'s' * (shots != 1)}, which an interrupted run left")

        try:
            outcomes = run_shoot(
                source,
                recipe,
                out_dir,
                get_settings(),
                limit=limit,
                progress=done,
                started=started,
                finished=written,
                noted=note,
                resumed=took_up,
            )
        except KeyboardInterrupt:
            note(f"what is finished is kept in {out_dir}: give the same command again, and it goes on from there")
            raise
    sheet = out_dir / "contact_sheet.png"
    rows = [(outcome.sku, outcome.state.value, outcome.picture or outcome.reason) for outcome in outcomes]
    skus = {outcome.sku for outcome in outcomes}
    walked = [(shot, steps) for shot, steps in read_record(out_dir) if shot.sku in skus and shot.scene == scene]
    codes = [steps["inspect"].facts.get("likeness", "") if "inspect" in steps else "" for _, steps in walked]
    alike = find_twins([(shot.product, code) for (shot, _), code in zip(walked, codes, strict=True)])
    answer(
        as_json,
        {"shots": outcomes, "contact_sheet": sheet, "alike": alike},
        table("SKU", "state", "file or reason", rows=rows),
        f"Contact sheet: {sheet}",
        *as_warnings(alike),
    )
    raise typer.Exit(exit_code([outcome.state for outcome in outcomes]))


def _recipe(scene: str, method: str | None, channel: str = "", **overrides: Any) -> Recipe:
    from pipelines.diffusion.methods import check_parts
    from pipelines.models.profile import active_profile
    from pipelines.scenes import Scene, load_scene
    from pipelines.settings import get_settings
    from pipelines.stages.painter import painter_of
    from pipelines.vision.credentials import Signer, find_credentials
    from pipelines.vision.reader import find_reader
    from pipelines.workflow import Recipe

    settings = get_settings()
    methods = get_args(Scene.model_fields["method"].annotation)
    if method not in (None, *methods):
        raise UsageError(f"--method {method}: there are {', '.join(methods)}")
    profile, look = active_profile(), load_scene(scene, channel=channel)
    check_parts(profile, method or look.method)
    recipe = Recipe(
        profile,
        look,
        method=method,
        compute=settings.compute(),
        max_megapixels=settings.photo_max_megapixels,
        credentials=find_credentials(settings),
        reader=find_reader(look.checks.read_text, settings),
        **overrides,
    )
    painter_of(recipe)  # before a model is loaded
    if recipe.credentials is not None:
        Signer(recipe.credentials)
    return recipe
