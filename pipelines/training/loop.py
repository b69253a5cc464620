"""The one training loop of the bundled models: a time budget, an EMA, a checkpoint that survives a kill, a loss curve.

    fit(TrainOptions(part="unet", minutes=25), model, loss_of_step)

`loss_of_step(step)` must depend on nothing but the model and `step` (draw from `step_rng`), so that a run which is
killed and resumed walks through the losses of the run that was not: to the bit where the budget is in steps. Where it
is in minutes, the learning rate follows the clock, and a machine that is slower after the kill sees it fall earlier.

Several GPUs: `accelerate launch --num_processes 4 -m pipelines.training brushnet --device cuda`. Every process takes
steps of its own, n of N takes step k N + n, and all share the mean of their gradients; the first one alone writes.
"""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast, reduce
from PIL import Image, ImageDraw
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
PROFILE = ROOT / "pipelines" / "profiles" / "mini"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What every trainer takes. `minutes` of training in all, over kills and resumes; `steps` instead of it when given.

    `dtype` is the autocast type of the forward pass; weights, gradients and optimizer stay float32. `work` holds the
    checkpoint, the curve and the samples and is never committed; `out` receives the exported model. `profile` is whose
    model it is. `checkpoint_seconds` is how often a checkpoint is written, where not as the trainer has it.
    """

    part: str
    minutes: float = 8.0
    steps: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    batch: int | None = None
    lr: float | None = None
    resume: bool = True
    seed: int = 0
    size: int | None = None
    data: Path = ROOT / ".." / "shared" / "training"
    out: Path = PROFILE
    work: Path = ROOT / "build" / "training"
    profile: str = "mini"
    checkpoint_seconds: float | None = None

    @property
    def folder(self) -> Path:
        """The work folder of this part, made when missing."""
        folder = self.work / self.part
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@dataclass(slots=True)
class TrainResult:
    """What a run reached: `ema` holds the averaged weights that are exported."""

    ema: nn.Module
    step: int
    seconds: float
    samples: int
    losses: list[float] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, float]:
        """Steps, samples, minutes and the mean loss of the last 200 steps, for the card."""
        return {
            "steps": self.step,
            "samples": self.samples,
            "minutes": round(self.seconds / 60, 2),
            "loss": round(float(np.mean(self.losses[-200:])), 5) if self.losses else float("nan"),
        }


def together(options: TrainOptions) -> PartialState:
    """The processes that train together: this one alone, unless `accelerate launch` began it.

    To be asked before anything is moved to a GPU: it chooses which one `cuda` is in this process.
    """
    # the first process may draw and measure for a while at a checkpoint, while the others wait for its gradients
    return PartialState(cpu=options.device == "cpu", timeout=timedelta(hours=2))


def export(model: nn.Module, folder: Path) -> None:
    """Save a diffusers model in half precision; where on this machine its weights came from is nobody's business."""
    model.register_to_config(_name_or_path=folder.name)  # type: ignore[operator]
    model.half().save_pretrained(folder)  # type: ignore[operator]


def step_rng(options: TrainOptions, step: int) -> np.random.Generator:
    """The random numbers of one step, the same before and after a resume."""
    return np.random.default_rng([options.seed, 7919, step])


def torch_rng(options: TrainOptions, step: int) -> torch.Generator:
    """The torch twin of `step_rng`, on the CPU."""
    return torch.Generator().manual_seed(options.seed * 1_000_003 + step)


def ema_decay(step: int, ceiling: float = 0.999) -> float:
    """The EMA's decay, warmed up so that the average does not lag behind a young model."""
    return min(ceiling, (1 + step) / (10 + step))


def learning_rate(peak: float, progress: float, step: int, warm_up: int = 100, floor: float = 0.03) -> float:
    """A linear warm-up over steps, then a cosine over `progress` (0..1 of the budget) down to `floor` x peak."""
    cosine = floor + (1 - floor) * 0.5 * (1 + np.cos(np.pi * min(progress, 1.0)))
    return float(peak * min(1.0, (step + 1) / warm_up) * cosine)


def fit(
    options: TrainOptions,
    model: nn.Module,
    loss_of_step: Callable[[int], Tensor],
    *,
    batch: int,
    lr: float,
    parameters: Iterable[nn.Parameter] | None = None,
    weight_decay: float = 0.0,
    ceiling: float = 0.999,
    every_seconds: float = 90.0,
    on_checkpoint: Callable[[nn.Module, int], None] | None = None,
) -> TrainResult:
    """Train `model` until the budget is spent and return the EMA of its weights.

    A checkpoint (weights, optimizer, EMA, step, losses) is written every `every_seconds` and at the end; with
    `options.resume` an earlier one is continued. `on_checkpoint(ema, step)` may draw samples. `batch` is one process's.
    """
    crew = together(options)
    pause = every_seconds if options.checkpoint_seconds is None else options.checkpoint_seconds
    trained = [p for p in (parameters or model.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, foreach=True)
    ema = copy.deepcopy(model).requires_grad_(False).eval()
    result = TrainResult(ema, 0, 0.0, 0)
    checkpoint = options.folder / "checkpoint.pt"
    if options.resume and checkpoint.exists():
        _restore(checkpoint, model, optimizer, result)
    started, saved = time.monotonic() - result.seconds, time.monotonic()
    with _progress(shown=crew.is_main_process) as bar:
        task = bar.add_task(options.part, total=1.0)
        while (progress := _spent(options, result.step, time.monotonic() - started, crew)) < 1:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(lr, progress, result.step)
            with _autocast(options):
                loss = loss_of_step(result.step * crew.num_processes + crew.process_index)
            loss.backward()
            loss = _share(trained, loss.detach(), crew)
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            _average(ema, model, ema_decay(result.step, ceiling))
            result.losses.append(loss.item())
            result.step, result.samples = result.step + 1, result.samples + batch * crew.num_processes
            result.seconds = time.monotonic() - started
            bar.update(
                task, completed=progress, speed=result.samples / result.seconds, loss=np.mean(result.losses[-50:])
            )
            if crew.is_main_process and time.monotonic() - saved > pause:
                _save(checkpoint, model, optimizer, result, options)
                if on_checkpoint:
                    on_checkpoint(ema, result.step)
                saved = time.monotonic()
    if crew.is_main_process:
        _save(checkpoint, model, optimizer, result, options)
        if on_checkpoint:
            on_checkpoint(ema, result.step)
    crew.wait_for_everyone()
    return result


def _spent(options: TrainOptions, step: int, seconds: float, crew: PartialState) -> float:
    if options.steps is not None:
        return step / options.steps
    spent = seconds / (options.minutes * 60)
    if crew.num_processes == 1:
        return spent
    return float(broadcast(torch.tensor(spent, device=crew.device)))  # one clock, or they would not stop together


def _share(trained: Sequence[nn.Parameter], loss: Tensor, crew: PartialState) -> Tensor:
    """Give every process the mean gradient of all; returns the mean loss."""
    if crew.num_processes == 1:
        return loss
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    mean = reduce(torch.cat([loss.float().reshape(1), *(gradient.flatten() for gradient in gradients)]), "mean")
    shares = mean[1:].split([gradient.numel() for gradient in gradients])
    for gradient, share in zip(gradients, shares, strict=True):
        gradient.copy_(share.view_as(gradient))
    return mean[0]


def _autocast(options: TrainOptions) -> contextlib.AbstractContextManager[object]:
    dtype = DTYPES[options.dtype]
    return torch.autocast(options.device, dtype=dtype, enabled=dtype is not torch.float32)


@torch.no_grad()
def _average(ema: nn.Module, model: nn.Module, decay: float) -> None:
    pairs = zip(ema.parameters(), model.parameters(), strict=True)
    moving = [(mean, new) for mean, new in pairs if new.requires_grad]
    torch._foreach_lerp_([mean for mean, _ in moving], [new.detach() for _, new in moving], 1 - decay)


def _save(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, result: TrainResult, options: TrainOptions
) -> None:
    state = {
        "model": model.state_dict(),
        "ema": result.ema.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": result.step,
        "seconds": result.seconds,
        "samples": result.samples,
        "losses": result.losses,
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)
    curve_picture(result.losses).save(options.folder / "loss.png")
    (options.folder / "figures.json").write_text(json.dumps(result.figures), encoding="utf-8")
    speed = result.samples / max(result.seconds, 1e-9)
    print(json.dumps({"part": options.part, **result.figures, "samples_per_second": round(speed, 1)}), flush=True)


def _restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, result: TrainResult) -> None:
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    result.ema.load_state_dict(state["ema"])
    optimizer.load_state_dict(state["optimizer"])
    result.step, result.seconds, result.samples = state["step"], state["seconds"], state["samples"]
    result.losses = state["losses"]


def _progress(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    figures = TextColumn("{task.fields[speed]:.1f} samples/s  loss {task.fields[loss]:.4f}")
    return _Quiet(*columns, figures, disable=not shown)


class _Quiet(Progress):
    """A progress bar whose figures start at zero."""

    def add_task(self, description: str, **rest: object) -> int:  # type: ignore[override]
        return super().add_task(description, speed=0.0, loss=0.0, **rest)  # type: ignore[arg-type, return-value]


def curve_picture(losses: list[float], size: tuple[int, int] = (640, 320)) -> Image.Image:
    """Plot the losses, smoothed over a hundredth of the run, on a logarithmic axis."""
    picture = Image.new("RGB", size, "white")
    if len(losses) < 3:
        return picture
    window = max(len(losses) // 100, 1)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    log = np.log10(np.maximum(smooth, 1e-9))
    low, high = float(log.min()), float(log.max()) + 1e-6
    x = np.linspace(50, size[0] - 12, len(log))
    y = 14 + (high - log) / (high - low) * (size[1] - 44)
    draw = ImageDraw.Draw(picture)
    draw.line([(50, 14), (50, size[1] - 30), (size[0] - 12, size[1] - 30)], fill=(150, 150, 150))
    draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=(40, 90, 160), width=2)
    draw.text((4, 10), f"{10**high:.3g}", fill="black")
    draw.text((4, size[1] - 40), f"{10**low:.3g}", fill="black")
    draw.text((50, size[1] - 22), f"0 .. {len(losses)} steps", fill="black")
    return picture


def grid_picture(pictures: list[np.ndarray], columns: int = 6) -> Image.Image:
    """Lay equally large uint8 pictures (H, W, 3) out in a grid, row by row."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for n, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(picture), (n % columns * width, n // columns * height))
    return sheet
