"""Memory of one picture of one guided step at SD 1.5's size, on the CPU, with BrushNet and one ControlNet.

    python -m benchmarks.step_memory

Prints one JSON document: `peak_gb` (the most that this process ever held, VmHWM), `modules_gb` (their weights),
`sampler_mb` (every tensor besides weights that is alive when the UNet is called: latents, embeddings, masks, and what
BrushNet and ControlNet gave), `sampler_share` of the peak, `seconds`. Needs 10 GB of free memory.
"""

from __future__ import annotations

import gc
import json
import re
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.sd15 import make_sampler, shot


def storages(tensors: list[torch.Tensor]) -> dict[int, int]:
    """Address → bytes, each storage once however many views of it there are."""
    found = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def main() -> None:
    """Run, measure, print."""
    began = time.perf_counter()
    pipeline = make_sampler("cpu")
    modules = (pipeline.unet, pipeline.brushnet, *pipeline.controlnets, pipeline.vae, pipeline.text_encoder)
    weights = storages([value for module in modules for value in (*module.parameters(), *module.buffers())])
    own: list[int] = []

    def look(module: Any, args: Any) -> None:
        # by type and not isinstance, which would wake lazy modules up
        alive = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
        own.append(sum(size for address, size in storages(alive).items() if address not in weights))

    pipeline.unet.register_forward_pre_hook(look)
    pipeline(**shot(), num_inference_steps=1)
    (peak_kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    peak = int(peak_kib) * 1024
    figures = {
        "peak_gb": peak / 1e9,
        "modules_gb": sum(weights.values()) / 1e9,
        "sampler_mb": max(own) / 1e6,
        "sampler_share": max(own) / peak,
        "seconds": time.perf_counter() - began,
    }
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
