"""Fine-tune the salient-object net on product composites.

    python -m pipelines.training salient --minutes 12

It starts from the published U²-Net-P (Apache-2.0). That net finds the most striking object of a scene, together with
props and hard shadows. The two finest encoder stages are frozen: they detect edges and colours, which do not change,
and take half of the backward pass.
"""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.training.card import write_card
from pipelines.training.composites import Composite, CompositeSource
from pipelines.training.loop import TrainOptions, fit, step_rng
from pipelines.vision.salient_net import MEAN, SIDE, STD, U2NetP

FROZEN_STAGES = 2
WEIGHTS = "model.safetensors"

NOTES = """U²-Net-P (Qin et al. 2020) from the published weights (Apache-2.0, see NOTICE), fine-tuned on composites of
cutouts over scenes, plain studio backgrounds and composed sets (`pipelines/training/composites.py`); shadows and props
count as background. The two finest encoder stages are frozen. The photos of the training folder are not used."""


def as_batch(items: list[Composite]) -> tuple[Tensor, Tensor]:
    """Normalised images `(B, 3, H, W)` and masks `(B, 1, H, W)`."""
    images = torch.from_numpy(np.stack([i.image for i in items])).permute(0, 3, 1, 2).float() / 255
    images = (images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    return images, torch.from_numpy(np.stack([i.mask for i in items]))[:, None]


def loss_of(outputs: list[Tensor], mask: Tensor) -> Tensor:
    """Cross-entropy of the fused map and every stage's (deep supervision, section 3.3), and soft IoU of the fused."""
    fused, *sides = [o.float() for o in outputs]
    entropy = F.binary_cross_entropy_with_logits(fused, mask)
    entropy = entropy + 0.3 * torch.stack([F.binary_cross_entropy_with_logits(s, mask) for s in sides]).mean()
    p = fused.sigmoid()
    overlap = (p * mask).sum((1, 2, 3)) / (p + mask - p * mask).sum((1, 2, 3)).clamp(min=1)
    return entropy + 0.5 * (1 - overlap).mean()


@torch.no_grad()
def evaluate(net: nn.Module, items: list[Composite]) -> float:
    """Mean IoU at threshold 0.5."""
    net.eval()
    scores = []
    for item in items:
        images, masks = as_batch([item])
        found, true = net(images)[0] > 0, masks > 0.5
        scores.append(float((found & true).sum() / (found | true).sum().clamp(min=1)))
    return float(np.mean(scores))


def train(options: TrainOptions) -> dict[str, float]:
    """Fine-tune the net in `options.out / "salient"` and write it back with its card.

    Starts from the existing weights there: at first those of the published net.
    """
    folder = options.out / "salient"
    side, batch = options.size or 224, options.batch or 4
    net = U2NetP()
    start = {name: weights.float() for name, weights in load_file(folder / WEIGHTS).items()}
    net.load_state_dict(start)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(f"encoder.{i}." for i in range(FROZEN_STAGES))))
    net.to(device=options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    test = CompositeSource(options.data, "test")
    held_out = [test.draw(SIDE, np.random.default_rng([1, i])) for i in range(32)]
    before = evaluate(net, held_out)
    source = CompositeSource(options.data)

    def loss_of_step(step: int) -> Tensor:
        rng = step_rng(options, step)
        images, masks = as_batch([source.draw(side, rng) for _ in range(batch)])
        outputs = net(images.to(options.device, memory_format=torch.channels_last))
        return loss_of(outputs, masks.to(options.device))

    result = fit(options, net, loss_of_step, batch=batch, lr=options.lr or 2e-4, ceiling=0.98)
    figures = {
        **result.figures,
        "held_out_iou_before": round(before, 4),
        "held_out_iou": round(evaluate(result.ema, held_out), 4),
    }
    save_file({k: v.half().contiguous() for k, v in result.ema.state_dict().items()}, folder / WEIGHTS)
    write_card(folder, "salient", net, options, figures, NOTES)
    return figures
