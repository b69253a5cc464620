"""The whole chain at tiny sizes: `chained.py WORK HOURS DATA [--fresh]`. Every step writes a checkpoint.

Nothing is mocked but sizes; what draws samples at a checkpoint writes an empty picture.
"""

from __future__ import annotations

import sys
from pathlib import Path

from diffusers import UNet2DConditionModel
from PIL import Image

from pipelines.training import (
    autoencoder,
    blip,
    brushnet,
    chain,
    clip,
    controlnet,
    data,
    exams,
    loras,
    unet,
)


def tiny_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=clip.WIDTH,
        attention_head_dim=(1, 1, 1, 1),
        norm_num_groups=8,
    )


def shrink() -> None:
    autoencoder.CHANNELS = (4, 4, 8, 8)
    autoencoder.COMPOSED, autoencoder.REAL, autoencoder.HELD_OUT = 6, 4, 2
    data.SHARD = 24
    for shots in (unet.SHOTS, loras.SHOTS):
        shots[128] = shots[256] = 24
    unet.PHOTOGRAPHS = 4
    unet.build = tiny_unet
    clip.SHOTS, clip.VOCABULARY = 24, 700
    clip.labelled = lambda *which: blip.labelled(*which)[:24]
    exams.SHOTS = 4

    def sample_nothing(model: object, *rest: object) -> None:
        path = rest[-1]
        assert isinstance(path, Path)
        Image.new("RGB", (8, 8)).save(path)

    for module in (unet, brushnet, controlnet, loras):
        module.show = sample_nothing
    autoencoder._show = sample_nothing


if __name__ == "__main__":
    shrink()
    work = Path(sys.argv[1])
    chain.main(
        hours=float(sys.argv[2]),
        fresh="--fresh" in sys.argv,
        device="cpu",
        dtype="float32",
        checkpoint_seconds=0,
        data=Path(sys.argv[3]),
        out=None,
        work=work,
        installing=False,
    )
