"""`packshot scenes list | check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.console import AsJson, answer, table

app = typer.Typer(no_args_is_help=True, help="List the scenes, or check a scene file.")


@app.command("list")
def list_all(as_json: AsJson = False) -> None:
    """List the scenes: name, title, picture."""
    from pipelines.scenes import list_scenes, picture_of

    scenes = list_scenes()
    rows = [(s.name, s.title, s.method, f"{s.channel.width}×{s.channel.height}", picture_of(s) or "–") for s in scenes]
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
    from pipelines.scenes import check_scene

    scene = check_scene(file)
    answer(as_json, {"name": scene.name, "digest": scene.digest}, f"{file}: {scene.title}: valid")
