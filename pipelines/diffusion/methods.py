"""The table of inpainting methods (the paper, section 2.1), and the parts of a profile that each needs.

It imports no model library, so commands can read it before any model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.errors import UsageError
from pipelines.models.profile import Profile


@dataclass(frozen=True, slots=True)
class Method:
    """What an inpainting method needs: a row of docs/reference/methods.md.

    Attributes:
        unet_channels: Input channels of its UNet.
        branch: The module that reads the masked image, by its name in `InpaintingPipeline`.
        blend: How the original's latents are blended in, at every step.
        parts: Parts of a profile that it needs in addition to the base.
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
    """Return a row of the table. Raises ValueError, which lists the known names."""
    if name not in METHODS:
        raise ValueError(f"There is no inpainting method {name!r}; there are {', '.join(METHODS)}.")
    return METHODS[name]


def parts_of(profile: Profile, name: str) -> tuple[str, ...]:
    """Return the parts of a profile that a method uses in addition to the base. They belong in a step's key."""
    method = method_named(name)
    wide = [part for part in _WIDE if profile.has(part)] if method.unet_channels == 9 else []
    return (*wide, *method.parts)


def check_parts(profile: Profile, name: str) -> None:
    """Raise UsageError if a profile lacks a part that a method needs."""
    method = method_named(name)
    missing = [part for part in method.parts if not profile.has(part)]
    if method.unet_channels == 9 and not any(profile.has(part) for part in _WIDE):
        missing.append(" or ".join(_WIDE))
    if missing:
        why = " (it was made for SDXL)" if name == "fooocus" else ""
        parts = " and ".join(missing)
        raise UsageError(f"method {name}{why} needs {parts}, which profile {profile.name} does not have")


_WIDE = ("base_inpaint9", "unet_inpaint9")
"""Names of a profile's 9-channel UNet: within a whole base, or alone."""
