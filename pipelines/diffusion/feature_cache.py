"""Feature caching: the deep part of a UNet runs every n-th step; other steps reuse its features.

Ma, Fang and Wang, "DeepCache: Accelerating Diffusion Models for Free", CVPR 2024
(https://huggingface.co/papers/2312.00858): deep features change little from step to step. The cache keeps the input of
the last up block. A shallow step runs only the first down block and the last up block. DeepCache has no branches. Here
branches run in whole steps only, and their outputs for those two blocks are cached too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class BranchResiduals:
    """What the branches add to a UNet in a step.

    Attributes:
        injections: BrushNet's `(down, mid, up)`; see `pipelines.diffusion.brushnet.inject`.
        controls: The ControlNets' sum, as the UNet's keyword arguments; empty if none is active.
    """

    injections: tuple[Sequence[Tensor], Tensor, Sequence[Tensor]] | None = None
    controls: dict[str, Any] = field(default_factory=dict)

    def for_shallow_step(self, unet: UNet2DConditionModel) -> BranchResiduals:
        """Return the residuals of the first down block and the last up block. Cached features get zeros."""
        first, last = _outermost(unet)
        down_count, up_count = 1 + len(first.resnets), len(last.resnets)
        injections, controls = self.injections, self.controls
        if injections is not None:
            down, mid, up = injections
            injections = (down[:down_count], _nothing(mid), up[-up_count:])
        if controls:
            controls = {
                "down_block_additional_residuals": controls["down_block_additional_residuals"][:down_count],
                "mid_block_additional_residual": _nothing(controls["mid_block_additional_residual"]),
            }
        return BranchResiduals(injections, controls)


class FeatureCache:
    """The deep features of a UNet's last whole step, and a UNet that reuses them.

    Attributes:
        shallow: Shares the UNet's first and last blocks and reads the rest from the cache. It takes the same arguments.
        added: What the branches added to those two blocks.

    Args:
        unet: Of SD 1.5 or SDXL. It is not changed.
        interval: Every how many steps the whole UNet runs.

    Raises:
        ValueError: the interval is below 1.
    """

    def __init__(self, unet: UNet2DConditionModel, interval: int):
        if interval < 1:
            raise ValueError(f"cache_interval is a number of steps, 1 or more, got {interval}.")
        self.unet, self.interval = unet, interval
        self.added = BranchResiduals()
        self._deep = _Recalled()
        self._state: tuple[bool, ...] = ()
        self._steps_left = 0
        first, last = _outermost(unet)
        blocks = {
            "down_blocks": nn.ModuleList([_with(first, downsamplers=None)]),
            "mid_block": self._deep,
            "up_blocks": nn.ModuleList([last]),
        }
        self.shallow: UNet2DConditionModel = _with(unet, **blocks)

    def recalls(self, state: tuple[bool, ...]) -> bool:
        """Return whether the next step may be shallow.

        `state` says whether the step is guided and which ControlNets are active. If it changes, the step is whole.
        """
        return self._steps_left > 0 and state == self._state

    def recall(self) -> tuple[UNet2DConditionModel, BranchResiduals]:
        """Return the UNet of a shallow step and the residuals to add to it."""
        self._steps_left -= 1
        return self.shallow, self.added

    @contextmanager
    def remember(self, state: tuple[bool, ...], added: BranchResiduals) -> Iterator[None]:
        """Keep the deep features of the whole step that runs in the `with` block."""

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._deep.feature = kwargs["hidden_states"]

        hook = _outermost(self.unet)[1].register_forward_pre_hook(keep, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
        self.added = added.for_shallow_step(self.unet)
        self._state, self._steps_left = state, self.interval - 1


class _Recalled(nn.Module):
    """Stands in for the deep blocks."""

    feature: Tensor

    def forward(self, *_: Any) -> Tensor:
        return self.feature


def _outermost(unet: UNet2DConditionModel) -> tuple[Any, Any]:
    return unet.down_blocks[0], unet.up_blocks[-1]


def _with(module: Any, **children: nn.Module | None) -> Any:
    """Return a view of a module with other children; it shares all else."""
    view = copy.copy(module)
    view._modules = {**module._modules, **children}
    return view


def _nothing(residual: Tensor) -> Tensor:
    """Return a zero per entry of the batch, for broadcasting."""
    return torch.zeros_like(residual[:, :1, :1, :1])
