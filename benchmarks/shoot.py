"""What `packshot shoot` costs, and how it stands a busy machine. `make bench` runs it.

    python -m benchmarks.shoot [PRODUCTS]

Prints a table of the first products of the sample catalogue, four by default, in scene `white-plain`:

start <command>  seconds until `packshot --help` and `packshot status` have answered, the best of three
cpu_<stage>      CPU seconds a product, models and imports of the stage included; `start` is what comes before
cpu              the same over all stages
salient_runs     runs of the salient-object net a product
first_image      seconds from the start of the process to the first step of stage `publish`
seconds          from the start of the process to the last image
beside_one_busy_core     seconds of such a run beside one `sha256sum /dev/zero`, over those without
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from pipelines.settings import ROOT

PRODUCTS = 4
SCENE = "white-plain"


def seconds_of(*arguments: str) -> float:
    """Seconds that a command of packshot takes, by the clock."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "pipelines.cli.main", *arguments], cwd=ROOT, capture_output=True)
    return time.perf_counter() - began


def measured(products: int) -> dict[str, float]:
    """One run in a process of its own: `cpu_<stage>` and `salient_runs` a product, `first_image` and `seconds`."""
    argv = [sys.executable, "-m", "benchmarks.shoot", "--here", str(products)]
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def shoot_here(products: int) -> dict[str, float]:
    """What `measured` returns, in this process."""
    from pipelines.cli.shoot import _recipe
    from pipelines.contracts import Shot, Step
    from pipelines.runs.local import shoot
    from pipelines.settings import get_settings
    from pipelines.vision.segmenters import SalientSegmenter

    cpu: dict[str, float] = {}
    runs, images, began = [0], [], psutil.Process().create_time()
    stage, since = "start", 0.0
    plain = SalientSegmenter.segment

    def counted(self, image):  # type: ignore[no-untyped-def]
        runs[0] += 1
        return plain(self, image)

    def started(name: str, _: int) -> None:
        nonlocal stage, since
        now = time.process_time()
        cpu[stage] = cpu.get(stage, 0.0) + now - since
        stage, since = name, now

    def progress(name: str, _: Shot, step: Step) -> None:
        if name == "publish":
            images.append(time.time() - began)

    SalientSegmenter.segment = counted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        recipe = _recipe(SCENE, None)
        shoot(ROOT / "pipelines/sample/catalog.csv", recipe, Path(folder), get_settings(), products, progress, started)
    started("end", 0)
    figures = {f"cpu_{name}": seconds / products for name, seconds in cpu.items()}
    figures |= {"cpu": sum(cpu.values()) / products, "salient_runs": runs[0] / products}
    return figures | {"first_image": min(images, default=float("nan")), "seconds": time.time() - began}


def main() -> int:
    """Measure and print."""
    if sys.argv[1:2] == ["--here"]:
        print(json.dumps(shoot_here(int(sys.argv[2]))))
        return 0
    products = int(sys.argv[1]) if sys.argv[1:] else PRODUCTS
    figures = {f"start {name}": min(seconds_of(name) for _ in range(3)) for name in ("--help", "status")}
    figures |= measured(products)
    busy = subprocess.Popen(["sha256sum", "/dev/zero"], stdout=subprocess.DEVNULL)
    try:
        figures["beside_one_busy_core"] = measured(products)["seconds"] / figures["seconds"]
    finally:
        busy.kill()
        busy.wait()
    for name, value in figures.items():
        print(f"{name:24}{value:12.3g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
