"""Who paints a scene: packshot's own sampler, or the profile's painter. It imports no model library."""

from __future__ import annotations

from pipelines.errors import UsageError
from pipelines.models.arguments import PainterArguments
from pipelines.models.painters import PAINTER
from pipelines.models.profile import ModelPart
from pipelines.workflow import Recipe


def painter_of(recipe: Recipe) -> ModelPart | None:
    """The part of the profile that paints the scene; None where packshot's own sampler does.

    A painter paints where a backdrop is adjusted or transformed. Raises UsageError if the scene or the command wants
    what only packshot's own sampler does.
    """
    scene, profile = recipe.scene, recipe.profile
    if not profile.has(PAINTER) or scene.backdrop is None or scene.backdrop.mode == "lock":
        return None
    part = profile.part(PAINTER)
    own = {
        "controls": scene.controls,
        "lora": scene.lora,
        "guidance_start": scene.guidance_start > 0,
        "guidance_end": scene.guidance_end < 1,
        "cache_interval": scene.cache_interval > 1,
    }
    wanted = [f"`{option}`" for option, value in own.items() if value]
    wanted += [f"method {recipe.method}"] if recipe.method else []
    if wanted:
        raise UsageError(
            f"scene {scene.name} with {' and '.join(wanted)} needs packshot's own sampler, but part {PAINTER} of "
            f"profile {profile.name} paints it with {part.pipeline}: leave that out of the scene, or the part out of "
            "the profile"
        )
    return part


def native_size(recipe: Recipe) -> int:
    """Shorter side, px, that the scene is painted at."""
    part = painter_of(recipe)
    own = PainterArguments(**part.arguments).native_size if part else None
    return own or recipe.profile.native_size
