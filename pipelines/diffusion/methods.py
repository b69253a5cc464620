"""The table of inpainting methods (the paper, section 2.1), and what each loads from a profile besides the base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from diffusers import ControlNetModel, UNet2DConditionModel

from pipelines.checkpoints import check_fits, load_net
from pipelines.diffusion.brushnet import BrushNetModel
from pipelines.diffusion.fooocus import InpaintHead, apply_patch, check_unet
from pipelines.errors import UsageError
from pipelines.models import Profile


@dataclass(frozen=True, slots=True)
class Method:
    """What an inpainting method needs: a row of the design's table.

    Attributes:
        unet_channels: Input channels of its UNet.
        branch: The module besides the UNet that sees the masked image, by its name in `InpaintingPipeline`.
        blend: How the original's latents come back in, at every step.
        parts: What it takes of a profile besides the base.
    """

    unet_channels: int = 4
    branch: Literal["brushnet", "inpaint_controlnet", "inpaint_head"] | None = None
    blend: Literal["hard", "soft"] | None = None
    parts: tuple[str, ...] = ()


METHODS: dict[str, Method] = {
    "blended": Method(blend="hard"),
    "soft": Method(blend="soft"),
    "inpaint9": Method(unet_channels=9),
    "controlnet_inpaint": Method(branch="inpaint_controlnet", parts=("controlnet_inpaint",)),
    "fooocus": Method(branch="inpaint_head", parts=("fooocus_head", "fooocus_patch")),
    "brushnet": Method(branch="brushnet", parts=("brushnet",)),
}


def method_named(name: str) -> Method:
    """A row of the table. Raises ValueError with the names that there are."""
    if name not in METHODS:
        raise ValueError(f"There is no inpainting method {name!r}; there are {', '.join(METHODS)}.")
    return METHODS[name]


def parts_of(profile: Profile, name: str) -> tuple[str, ...]:
    """The parts of a profile that a method paints with besides the base: what a step's key must say of it."""
    method = method_named(name)
    wide = ("base_inpaint9", "unet_inpaint9") if method.unet_channels == 9 else ()
    return (*(part for part in wide if profile.has(part)), *method.parts)


def check_parts(profile: Profile, name: str) -> None:
    """Raise UsageError where a profile lacks what a method needs."""
    missing = [part for part in method_named(name).parts if not profile.has(part)]
    if missing:
        why = " (it was made for SDXL)" if name == "fooocus" else ""
        raise UsageError(
            f"method {name}{why} needs {' and '.join(missing)}, which profile {profile.name} does not have"
        )


def load_branch(profile: Profile, name: str, unet: UNet2DConditionModel) -> dict[str, Any]:
    """Load a method's branch, as the keyword argument of `InpaintingPipeline` that takes it; Fooocus patches the UNet.

    Raises UsageError where files are missing, IntegrityError where they are not what the profile says or not for this
    UNet, ValueError for Fooocus with a UNet of SD 1.5.
    """
    branch = method_named(name).branch
    if branch == "brushnet":
        return {branch: load_branch_net(profile, "brushnet", BrushNetModel, unet, "a BrushNet")}
    if branch == "inpaint_controlnet":
        return {branch: load_branch_net(profile, "controlnet_inpaint", ControlNetModel, unet, "a ControlNet")}
    if branch == "inpaint_head":
        check_unet(unet)
        head = InpaintHead.from_file(profile.part("fooocus_head").check().path)
        apply_patch(unet, profile.part("fooocus_patch").check().path)
        return {branch: head}
    return {}


def load_branch_net(profile: Profile, key: str, model: Any, unet: UNet2DConditionModel, expected: str) -> Any:
    """Load a BrushNet or ControlNet of a profile for a UNet. Raises as `load_branch`."""
    part = profile.part(key).check()
    net = load_net(model, part, expected)
    check_fits(part.path, net, unet, expected)
    return net
