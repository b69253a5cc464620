"""`packshot scenes list | check | new | preview`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.cli.console import AsJson, answer, err, short_path, table
from pipelines.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="List the scenes, check a scene file, or make a scene of a picture.")


@app.command("list")
def list_all(as_json: AsJson = False) -> None:
    """List the scenes: name, title, picture."""
    from pipelines.scenes import list_scenes, picture_of

    scenes = list_scenes()
    rows = [
        (s.name, s.title, s.method, f"{s.channel.width}×{s.channel.height}", short_path(picture_of(s))) for s in scenes
    ]
    answer(
        as_json,
        [{"name": s.name, "title": s.title, "picture": picture_of(s)} for s in scenes],
        table("name", "title", "method", "channel", "picture", rows=rows),
    )


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A scene's YAML file.")],
    as_json: AsJson = False,
) -> None:
    """Validate one scene file."""
    from pipelines.scenes import check_pixels, check_scene

    scene = check_scene(file)
    check_pixels(scene)
    answer(as_json, {"name": scene.name, "digest": scene.digest}, f"{file}: {scene.title}: valid")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The scene's name: a-z, 0-9, `-`, `_`.")],
    picture: Annotated[Path, typer.Option("--from", help="A picture of an empty set: JPEG, PNG or WebP.")],
    licence: Annotated[str, typer.Option(help="Under which licence the picture may be used, in a line.")] = "",
    title: Annotated[str, typer.Option(help="What people read in forms and lists.")] = "",
    prompt: Annotated[
        str, typer.Option(help="The scene in words.")
    ] = "a photo of {product}, soft light from the {light}",
    mode: Annotated[
        Literal["lock", "adjust", "transform"], typer.Option(help="What is painted of the result.")
    ] = "adjust",
    ground_line: Annotated[
        float, typer.Option(help="Where products stand, as a share of the height from the top.")
    ] = 0.86,
    light_from: Annotated[
        Literal["left", "right", "front"], typer.Option(help="From where the picture's light comes.")
    ] = "front",
    reflection: Annotated[float, typer.Option(help="How strongly the ground mirrors: 0 matt, 1 mirror.")] = 0.0,
    width: Annotated[int, typer.Option(help="Of the channel's images, px.")] = 1024,
    height: Annotated[int, typer.Option(help="Of the channel's images, px.")] = 1024,
    photo: Annotated[
        Path | None, typer.Option(help="Product photo for the preview; by default a sample product.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a scene beside a picture, and a preview of it made by the pipeline."""
    from pipelines.models.profile import active_profile
    from pipelines.runs.previews import check_photo, preview
    from pipelines.scenes.new import NewScene, write_scene
    from pipelines.settings import get_settings

    check_photo(photo)
    scene = write_scene(
        NewScene(
            name, picture, licence, title, prompt, mode, ground_line, light_from, reflection, width=width, height=height
        )
    )
    file = scene.folder / f"{name}.yaml"
    try:
        with err.status(f"Making a preview of {name}"):
            shown = preview(scene, active_profile(), get_settings(), photo)
    except BaseException:
        file.unlink()  # else the corrected command finds a scene of that name
        raise
    answer(
        as_json,
        {"name": name, "file": file, "picture": shown, "digest": scene.digest},
        f"{file}: {scene.title}",
        f"Preview: {shown}",
        f"To use it: PACKSHOT_SCENES_DIR={scene.folder.resolve()}",
    )


@app.command("preview")
def make_previews(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME…", help="Scenes; see `packshot scenes list`.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every scene that names a picture.")] = False,
    photo: Annotated[Path | None, typer.Option(help="Product photo; by default a sample product.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make the pictures that show scenes in lists: one product in each, taken through the pipeline."""
    from pipelines.models.profile import active_profile
    from pipelines.runs.previews import preview
    from pipelines.scenes import list_scenes, load_scene
    from pipelines.settings import get_settings

    scenes = [s for s in list_scenes() if s.picture] if every else [load_scene(name) for name in names or ()]
    if not scenes:
        raise UsageError("name one or more scenes, or say --all")
    made = []
    for scene in scenes:
        with err.status(f"Making a preview of {scene.name}"):
            made.append((scene.name, preview(scene, active_profile(), get_settings(), photo)))
    answer(as_json, [{"name": name, "picture": path} for name, path in made], table("name", "picture", rows=made))
