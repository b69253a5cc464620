"""`packshot models list | verify | fetch | merge`: the model files of a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli.console import AsJson, answer, progress_bar, table

app = typer.Typer(no_args_is_help=True, help="The models of a profile: source, bytes and licence.")


@app.command("list")
def list_all(as_json: AsJson = False) -> None:
    """List every model of the profile: source, revision, sha256, licence."""
    _models(check=False, as_json=as_json)


@app.command()
def verify(as_json: AsJson = False) -> None:
    """Compare every model's bytes with the profile's sha256. The exit code is 1 if one differs."""
    _models(check=True, as_json=as_json)


def _models(*, check: bool, as_json: bool) -> None:
    from pipelines.models.profile import active_profile
    from pipelines.models.profile import verify as verify_profile
    from pipelines.settings import get_settings
    from pipelines.vision.reader import reading_state

    profile = active_profile()
    problems = {checked.name: checked.problem for checked in verify_profile(profile)} if check else {}
    document = [
        {
            "profile": profile.name, "name": part.name, "source": part.source, "revision": part.ref.revision,
            "sha256": part.ref.sha256, "licence": part.licence, "problem": problems.get(part.name, ""),
        }
        for part in profile.parts
    ]  # fmt: skip
    rows = [
        [one["name"], one["source"], one["revision"], one["sha256"][:16] or "unpinned", one["licence"]]
        + ([one["problem"] or "ok"] if check else [])
        for one in document
    ]
    headings = ["name", "source", "revision", "sha256", "licence"] + (["problem"] if check else [])
    answer(as_json, document, table(*headings, rows=rows), reading_state(get_settings()))
    raise typer.Exit(1 if any(problems.values()) else 0)


@app.command(epilog="Example: PACKSHOT_MODELS_DIR=~/models packshot models fetch sd15")
def fetch(
    profile_name: Annotated[str, typer.Argument(metavar="PROFILE", help="sd15 or sdxl; mini is bundled.")],
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PART]...", help="Only these. An optional part is fetched only when it is named."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download a profile's published files into PACKSHOT_MODELS_DIR. A second call resumes an interrupted download.

    A complete file is not fetched again. Bytes that the profile pins are compared with its sha256. For other files the
    sha256 is shown: pin it in <models directory>/<profile>.yaml once you trust it.
    """
    from rich.progress import DownloadColumn, TransferSpeedColumn

    from pipelines.models.download import fetch as download
    from pipelines.models.profile import UNPINNED, load_profile
    from pipelines.settings import get_settings

    profile = load_profile(profile_name, get_settings().models_dir)
    parts = [profile.part(name) for name in names] if names else [part for part in profile.parts if not part.optional]
    document = []
    with progress_bar(DownloadColumn(), TransferSpeedColumn()) as progress:
        for part in parts:
            bar = progress.add_task(part.name, total=None)

            def seen(done: int, total: int | None, bar: Any = bar) -> None:
                progress.update(bar, completed=done, total=total)

            digest = download(part, seen)
            size = sum(file.stat().st_size for file in part.weights)
            progress.update(bar, completed=size, total=size)
            document.append({"name": part.name, "path": part.path, "sha256": digest, "pinned": part.pinned})
    rows = [(one["name"], one["path"], one["sha256"], "" if one["pinned"] else UNPINNED) for one in document]
    answer(as_json, document, table("name", "path", "sha256", "", rows=rows))


@app.command(
    epilog="Example: packshot models merge --base dreams.safetensors --inpainting sd-v1-5-inpainting.safetensors "
    "--original v1-5-pruned-emaonly.safetensors --out dreams-inpainting.safetensors",
)
def merge(
    base: Annotated[Path, typer.Option(help="A model of 4 channels that descends from the original.")],
    inpainting: Annotated[Path, typer.Option(help="The published inpainting model, of 9 channels.")],
    original: Annotated[Path, typer.Option(help="The model that the inpainting model was trained from.")],
    merged: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors file to write.")],
    as_json: AsJson = False,
) -> None:
    """Make an inpainting model of any base: base + (inpainting - original), tensor by tensor.

    Each input is a single-file checkpoint or a diffusers UNet, as safetensors. A torch file needs `packshot --trust`.
    Put the result into PACKSHOT_MODELS_DIR and name it as `base_inpaint9` in the profile.
    """
    from pipelines.models.files import sha256_of
    from pipelines.models.merging import how_to_use, merge_inpainting
    from pipelines.settings import get_settings

    with progress_bar() as progress:
        bar = progress.add_task("merge", total=None, note="tensors")
        merge_inpainting(
            base, inpainting, original, merged,
            trust=get_settings().trust_pickle,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )  # fmt: skip
    digest = sha256_of(merged)
    answer(as_json, {"path": merged, "sha256": digest}, f"{merged}: {how_to_use(merged, digest)}")
