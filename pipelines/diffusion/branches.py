"""Load the branch that reads the masked image: BrushNet, a ControlNet, or Fooocus' head and patch."""

from __future__ import annotations

from typing import Any

from diffusers import ControlNetModel, UNet2DConditionModel

from pipelines.diffusion.brushnet import BrushNetModel
from pipelines.diffusion.fooocus import InpaintHead, apply_patch, check_unet
from pipelines.diffusion.methods import method_named
from pipelines.models.arguments import ControlNetArguments
from pipelines.models.checkpoints import check_fits, load_net
from pipelines.models.profile import Profile


def load_branch(profile: Profile, name: str, unet: UNet2DConditionModel) -> dict[str, Any]:
    """Load a method's branch and return it as keyword arguments of `InpaintingPipeline`. Fooocus also patches the UNet.

    Raises UsageError if files are missing, IntegrityError if they differ from the profile or do not fit this UNet,
    ValueError for Fooocus with a UNet of SD 1.5.
    """
    branch = method_named(name).branch
    if branch == "brushnet":
        return {branch: load_branch_net(profile, "brushnet", BrushNetModel, unet, "a BrushNet")}
    if branch == "inpaint_controlnet":
        net = load_branch_net(profile, "controlnet_inpaint", ControlNetModel, unet, "a ControlNet")
        arguments = ControlNetArguments(**profile.part("controlnet_inpaint").arguments)
        return {branch: net, "inpaint_scale": arguments.scale}
    if branch == "inpaint_head":
        check_unet(unet)
        head = InpaintHead.from_file(profile.part("fooocus_head").check().path)
        apply_patch(unet, profile.part("fooocus_patch").check().path)
        return {branch: head}
    return {}


def load_branch_net(profile: Profile, key: str, model: Any, unet: UNet2DConditionModel, expected: str) -> Any:
    """Load a BrushNet or ControlNet of a profile for a UNet. Raises as `load_branch` does."""
    part = profile.part(key).check()
    net = load_net(model, part, expected)
    check_fits(part.path, net, unet, expected)
    return net
