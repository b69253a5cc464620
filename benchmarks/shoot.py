"""What `packshot shoot` costs, and how it stands a busy machine. `make bench` runs it.

    python -m benchmarks.shoot [--products N] [--scene NAME] [--plot FILE.svg] [--no-busy]

Prints a table of the first products of the sample catalogue, four by default, in scene `white-plain`:

start <command>  seconds until `packshot --help` and `packshot status` have answered, the best of three
stage <stage>    CPU seconds a product, by stage; `imports`: what comes before the first one, with all modules
cause <cause>    CPU seconds a product, by what computes; `other`: the rest of the stages
cpu              CPU seconds a product in all
salient_runs     runs of the salient-object net a product
first_cutout     seconds from the start of the process to the first cutout, of one product
first_image      seconds from the start of the process to the first published image, of one product
seconds          seconds from the start of the process to the last image
beside_one_busy_core     seconds of such a run beside one `sha256sum /dev/zero`, over those without
beside_four_busy_cores   likewise beside four

`--plot` draws where the CPU time goes, by stage and by cause. CPU seconds and counts also hold on a busy machine; rows
in seconds by the clock need a quiet one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from pipelines.contracts import STAGES
from pipelines.processors import importing
from pipelines.settings import ROOT

CAUSES = {
    "UNet": ("diffusers", "UNet2DConditionModel.forward"),
    "BrushNet": ("pipelines.diffusion.brushnet", "BrushNetModel.forward"),
    "encode": ("diffusers", "AutoencoderKL.encode"),
    "decode": ("diffusers", "AutoencoderKL.decode"),
    "salient net": ("pipelines.vision.segmenters", "SalientSegmenter.segment"),
    "HQ-SAM": ("pipelines.vision.segmenters", "HQSamSegmenter.segment_prompted"),
    "BLIP": ("pipelines.vision.captioner", "Captioner.caption"),
    "CLIP": ("pipelines.vision.tagger", "Tagger.rank"),
    "upscaler": ("pipelines.vision.upscalers", "Upscaler.upscale"),
    "background quality": ("pipelines.stages.inspect", "background_quality"),
}
"""What computes: a module, and a function of it or of one of its classes. None of them calls another."""


def seconds_of(*arguments: str) -> float:
    """Seconds that a command of packshot takes, by the clock."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "pipelines.cli.main", *arguments], cwd=ROOT, capture_output=True)
    return time.perf_counter() - began


def measured(products: int, scene: str, how: str = "--here") -> dict[str, float]:
    """The figures of one run in a process of its own; see `shoot_here`, and `firsts_here` for "--firsts-here"."""
    argv = [sys.executable, "-m", "benchmarks.shoot", how, "--products", str(products), "--scene", scene]
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def shoot_here(products: int, scene: str) -> dict[str, float]:
    """Run in this process; the rows from `stage` to `salient_runs`, a product, and `seconds`."""
    from pipelines.cli.shoot import _recipe
    from pipelines.contracts import Shot, Step
    from pipelines.runs.local import shoot
    from pipelines.settings import get_settings

    stages: dict[str, float] = defaultdict(float)
    causes: dict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    images: list[float] = []
    stage, since = "imports", 0.0

    def started(name: str, _: int) -> None:
        nonlocal stage, since
        now = time.process_time()
        stages[stage] += now - since
        stage, since = name, now

    def progress(name: str, _: Shot, step: Step) -> None:
        if name == "publish":
            images.append(_age())

    with importing():
        for name in STAGES:
            import_module(f"pipelines.stages.{name}")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for cause, (module, path) in CAUSES.items():
            stack.callback(_time_calls(module, path, cause, causes, calls))
        catalogue = ROOT / "pipelines/sample/catalog.csv"
        shoot(catalogue, _recipe(scene, None), Path(folder), get_settings(), products, progress, started)
    started("end", 0)
    whole = sum(stages.values())
    causes |= {"imports": stages["imports"], "other": whole - stages["imports"] - sum(causes.values())}
    figures = {f"stage {name}": seconds / products for name, seconds in stages.items()}
    figures |= {f"cause {name}": seconds / products for name, seconds in causes.items()}
    figures |= {"cpu": whole / products, "salient_runs": calls["salient net"] / products}
    return figures | {"seconds": max(images, default=float("nan"))}


def firsts_here(scene: str) -> dict[str, float]:
    """Run one product in this process, which imports what `packshot shoot` does; the rows `first_cutout` and
    `first_image`."""
    from pipelines.cli.shoot import _recipe
    from pipelines.contracts import Shot, Step
    from pipelines.runs.local import shoot
    from pipelines.settings import get_settings

    ages: dict[str, float] = {}

    def progress(name: str, _: Shot, step: Step) -> None:
        ages.setdefault(name, _age())

    with tempfile.TemporaryDirectory() as folder:
        catalogue = ROOT / "pipelines/sample/catalog.csv"
        shoot(catalogue, _recipe(scene, None), Path(folder), get_settings(), 1, progress)
    never = float("nan")
    return {"first_cutout": ages.get("cutout", never), "first_image": ages.get("publish", never)}


def _age() -> float:
    """Seconds since this process was started."""
    return time.time() - psutil.Process().create_time()


def _time_calls(
    module: str, path: str, cause: str, seconds: dict[str, float], calls: Counter[str]
) -> Callable[[], None]:
    """Count calls of a function and their CPU seconds; returns what puts the function back."""
    owner: Any = import_module(module)
    *holders, name = path.split(".")
    for holder in holders:
        owner = getattr(owner, holder)
    plain = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        try:
            return plain(*args, **kwargs)
        finally:
            seconds[cause] += time.process_time() - began
            calls[cause] += 1

    setattr(owner, name, timed)
    return lambda: setattr(owner, name, plain)


COLOURS = ("#3b6ea5", "#e08e45", "#6aa56a", "#b85c5c", "#8c6bb1", "#a67c52", "#d48ab5", "#7f7f7f", "#b8b04a", "#4fb0b0")


def draw(figures: Mapping[str, float]) -> str:
    """An SVG with two bars, CPU seconds a product by stage and by cause; the largest shares are written beside them."""
    width, row, left = 900, 22, 20
    parts, y = [], 40
    for kind in ("stage", "cause"):
        shares = {name.split(" ", 1)[1]: value for name, value in figures.items() if name.startswith(f"{kind} ")}
        shares = dict(sorted(shares.items(), key=lambda item: -item[1]))
        whole = sum(shares.values())
        parts.append(f'<text x="{left}" y="{y - 8}">by {kind}: {whole:.1f} CPU s a product</text>')
        x = float(left)
        for number, (name, value) in enumerate(shares.items()):
            colour, wide = COLOURS[number % len(COLOURS)], (width - 2 * left) * value / whole
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{row}" fill="{colour}"/>')
            column, line = number % 4, number // 4
            at = f'x="{left + column * 215}" y="{y + row + 8 + line * row}"'
            parts.append(f'<rect {at} width="12" height="12" fill="{colour}"/>')
            place = f'x="{left + column * 215 + 18}" y="{y + row + 19 + line * row}"'
            parts.append(f"<text {place}>{name} {value:.2f}</text>")
            x += wide
        y += row * (3 + (len(shares) + 3) // 4) + 10
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" font-family="sans-serif" font-size="13">'
    )
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]) + "\n"


def beside(busy: int, products: int, scene: str) -> float:
    """Seconds of a run beside `busy` processes that compute."""
    argv = ["sha256sum", "/dev/zero"]
    others = [subprocess.Popen(argv, stdout=subprocess.DEVNULL) for _ in range(busy)]
    try:
        return measured(products, scene)["seconds"]
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shoot")
    parser.add_argument("--products", type=int, default=4)
    parser.add_argument("--scene", default="white-plain")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--no-busy", action="store_true", help="leave out the runs beside other processes")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--firsts-here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(shoot_here(given.products, given.scene)))
        return 0
    if given.firsts_here:
        print(json.dumps(firsts_here(given.scene)))
        return 0
    figures = {f"start {name}": min(seconds_of(name) for _ in range(3)) for name in ("--help", "status")}
    figures |= measured(given.products, given.scene)
    figures |= measured(1, given.scene, "--firsts-here")
    if not given.no_busy:
        for busy, name in ((1, "beside_one_busy_core"), (4, "beside_four_busy_cores")):
            figures[name] = beside(busy, given.products, given.scene) / figures["seconds"]
    for name, value in figures.items():
        print(f"{name:26}{value:10.3g}")
    if given.plot is not None:
        given.plot.parent.mkdir(parents=True, exist_ok=True)
        given.plot.write_text(draw(figures), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
