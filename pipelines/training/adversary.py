"""A small critic of patches (Isola et al. 2017) for the autoencoder's decoder, trained in the same step as its victim.

    critic = Critic()
    loss = critic_loss(critic, decoded, target) + WEIGHT * victim_loss(critic, decoded)

The critic's loss sees a detached picture, and the victim's loss a critic whose weights are detached: one backward pass
and one optimizer serve both, so a checkpoint of the training loop holds all that there is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

WIDTHS = (32, 64, 128, 128)
RATE = 2.0
"""Of the learning rate: an equalised weight of unit size then moves by so much of it a step."""


class Critic(nn.Module):
    """Pictures (N, 3, H, W) in -1..1 to a score for each of (N, 1, H/8, W/8) overlapping patches; high = genuine."""

    def __init__(self) -> None:
        super().__init__()
        before = (3, *WIDTHS[:-1])
        self.layers = nn.ModuleList(
            EqualConv(*pair, stride=2 if n < 3 else 1) for n, pair in enumerate(zip(before, WIDTHS, strict=True))
        )
        self.score = EqualConv(WIDTHS[-1], 1, stride=1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Score every patch."""
        x = pictures
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2) * 2**0.5
        return self.score(x)


class EqualConv(nn.Module):
    """A 4 x 4 (or, with stride 1, 3 x 3) convolution with an equalised learning rate (Karras et al. 2018), times
    `RATE`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        size = 4 if stride == 2 else 3
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size) / RATE)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale, self.stride = RATE * (inputs * size * size) ** -0.5, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        return F.conv2d(x, self.weight * self.scale, self.bias * RATE, stride=self.stride, padding=1)


def critic_loss(critic: Critic, decoded: Tensor, target: Tensor) -> Tensor:
    """The hinge loss of the critic; no gradient reaches the pictures."""
    return F.relu(1 - critic(target)).mean() + F.relu(1 + critic(decoded.detach())).mean()


def victim_loss(critic: Critic, decoded: Tensor) -> Tensor:
    """Minus the critic's mean score of `decoded`; no gradient reaches the critic."""
    frozen = {name: parameter.detach() for name, parameter in critic.named_parameters()}
    scores: Tensor = functional_call(critic, frozen, (decoded,))
    return -scores.mean()
