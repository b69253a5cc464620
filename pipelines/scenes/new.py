"""Write a scene for a shop's own picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import UsageError
from pipelines.scenes import Scene, check_pixels, check_scene
from pipelines.scenes.strict_yaml import checked_name

PROMPT = "a photo of {product}, soft light from the {light}"


@dataclass(frozen=True, slots=True)
class NewScene:
    """What a person says of a new scene and its picture; see `pipelines.scenes.BackdropPicture`."""

    name: str
    picture: Path
    licence: str
    title: str = ""
    prompt: str = PROMPT
    mode: str = "adjust"
    ground_line: float = 0.86
    light_from: str = "front"
    reflection: float = 0.0
    width: int = 1024
    height: int = 1024


def write_scene(asked: NewScene) -> Scene:
    """Write `<name>.yaml` beside the picture and read it back.

    Raises UsageError, and leaves no file: the name is none; the picture is missing, too small for the channel, or has
    no licence; the ground is out of the frame; a scene of that name is there already.
    """
    picture, path = asked.picture, asked.picture.parent / f"{asked.name}.yaml"
    try:
        checked_name(asked.name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not picture.is_file():
        raise UsageError(f"{picture}: no such picture")
    if path.exists():
        raise UsageError(f"{path}: this scene is there already; choose another name, or remove the file")
    if not asked.licence.strip():
        raise UsageError(f'{picture.name}: say under which licence it may be used, such as --licence "own photograph"')
    if not 0.2 <= asked.ground_line <= 1:
        raise UsageError(
            f"{picture.name}: the ground line {asked.ground_line:g} is out of the frame; it is a share of the height, "
            "from the top, 0.2 to 1"
        )
    path.write_text(yaml.safe_dump(_document(asked), sort_keys=False, allow_unicode=True, width=110), "utf-8")
    try:
        scene = check_scene(path)
        check_pixels(scene)
        return scene
    except UsageError:
        path.unlink()
        raise


def _document(asked: NewScene) -> dict[str, Any]:
    return {
        "name": asked.name,
        "title": asked.title or asked.name.replace("-", " ").replace("_", " ").capitalize(),
        "prompt": asked.prompt,
        "backdrop": {
            "mode": asked.mode,
            "pictures": [
                {
                    "file": asked.picture.name,
                    "licence": asked.licence.strip(),
                    "ground_line": asked.ground_line,
                    "light_from": asked.light_from,
                    "reflection": asked.reflection,
                }
            ],
        },
        "controls": [{"kind": "canny", "scale": 0.8, "end": 0.8}],
        "channel": {"width": asked.width, "height": asked.height},
        "picture": f"{asked.name}-preview.jpg",
    }
