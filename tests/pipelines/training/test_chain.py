"""The chain of trainers: killed and resumed, from pictures to a profile; and never a part replaced by a worse one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipelines.errors import UsageError
from pipelines.settings import ROOT
from pipelines.training import chain
from pipelines.training.chain import STAGES, Chain
from pipelines.training.loop import PROFILE, TrainOptions

SHARED = ROOT / ".." / "shared"
needs_shared = pytest.mark.skipif(not (SHARED / "models").exists(), reason="needs ../shared")


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainOptions:
    """A chain whose trainers write a number into their part, and whose exams read it."""

    def trainer(part: str):
        def train(options: TrainOptions) -> None:
            folder = options.out / part
            assert part == "autoencoder" or (options.out / "autoencoder").exists(), "trained before what it stands on"
            folder.mkdir(exist_ok=True)
            (folder / "error").write_text(errors[part])
            (folder / "CARD.md").write_text("# a card\n- **Licence**: Apache-2.0\n")
            (options.work / part).mkdir(parents=True, exist_ok=True)
            figures = {"minutes": options.minutes, "samples": 600}
            (options.work / part / "figures.json").write_text(json.dumps(figures))
            trained.append((part, options.size))
            if part == dies.get("at"):
                raise KeyboardInterrupt

        return train

    errors = {stage.part: "0.5" for stage in STAGES}
    trained: list[tuple[str, int | None]] = []
    dies: dict[str, str] = {}
    monkeypatch.setattr(chain, "trainer", trainer)
    monkeypatch.setattr(chain, "judge", lambda part, options, folder: float((folder / "error").read_text()))
    monkeypatch.setattr(Chain, "_finish", lambda chain: chain.options.out)
    monkeypatch.setattr(chain, "PROFILE", tmp_path / "bundled")
    for stage in STAGES:
        for part in stage.writes:
            (tmp_path / "bundled" / part).mkdir(parents=True, exist_ok=True)
        (tmp_path / "bundled" / stage.part / "error").write_text("0.4")
        (tmp_path / "bundled" / stage.part / "CARD.md").write_text("# bundled\n- **Licence**: Apache-2.0\n")
    options = TrainOptions("mini", out=tmp_path / "work" / "profile" / "mini", work=tmp_path / "work")
    monkeypatch.setattr(chain, "test_state", (errors, trained, dies), raising=False)
    return options


def state() -> tuple[dict[str, str], list[tuple[str, int | None]], dict[str, str]]:
    return chain.test_state


def error_of(options: TrainOptions, part: str) -> str:
    return (options.out / part / "error").read_text()


def test_the_shares_are_the_whole_and_the_order_is_the_chains():
    assert sum(stage.share for stage in STAGES) == pytest.approx(1)
    order = [stage.part for stage in STAGES]
    for earlier, later in [
        ("autoencoder", "unet"),
        ("unet", "brushnet_random"),
        ("brushnet_random", "brushnet_salient"),
        ("brushnet_salient", "brushnet"),
        ("brushnet", "controlnet_canny"),
        ("controlnet_canny", "lora_oak_window"),
        ("lora_oak_window", "base_high_key"),
    ]:
        assert order.index(earlier) < order.index(later)


def test_a_worse_part_never_takes_the_place_of_a_better_one(options):
    errors, trained, _ = state()
    errors["unet"] = "0.3"
    Chain.open(options, 1, fresh=False).run()
    assert error_of(options, "unet") == "0.3"
    assert {error_of(options, stage.part) for stage in STAGES if stage.part != "unet"} == {"0.4"}
    assert ("unet", 256) in trained  # it goes on from the bundled one, at the profile's size
    card = (options.out / "unet" / "CARD.md").read_text(encoding="utf-8")
    assert "0.36 hours, 600 samples on" in card
    assert "0.3000, 0.4000 before" in card
    page = (options.work / "index.html").read_text(encoding="utf-8")
    assert page.count("the earlier one was better") == len(STAGES) - 1


def test_from_nothing_there_is_nothing_to_be_better_than(options):
    _, trained, _ = state()
    Chain.open(options, 1, fresh=True).run()
    assert {error_of(options, stage.part) for stage in STAGES} == {"0.5"}
    assert [part for part, _ in trained] == [stage.part for stage in STAGES]
    assert all(size is None for _, size in trained)


def test_a_killed_stage_is_trained_again_from_its_own_beginning_and_none_that_is_done(options):
    _, trained, dies = state()
    dies["at"] = "brushnet"
    with pytest.raises(KeyboardInterrupt):
        Chain.open(options, 1, fresh=True).run()
    (options.out / "brushnet" / "error").write_text("half an export")
    dies.clear()
    Chain.open(options, 1, fresh=True).run()
    assert error_of(options, "brushnet") == "0.5"
    parts = [part for part, _ in trained]
    assert parts.count("brushnet") == 2
    assert all(parts.count(stage.part) == 1 for stage in STAGES if stage.part != "brushnet")


def test_more_hours_are_another_round_and_the_card_adds_them_up(options):
    errors, trained, _ = state()
    Chain.open(options, 1, fresh=True).run()
    before = len(trained)
    Chain.open(options, 1, fresh=True).run()
    assert len(trained) == before  # nothing is left to do
    errors["brushnet"] = "0.2"
    Chain.open(options, 3, fresh=True).run()
    assert error_of(options, "brushnet") == "0.2"
    said = chain.NOTE.search((options.out / "brushnet" / "CARD.md").read_text(encoding="utf-8"))
    assert (float(said[1]), said[2]) == (pytest.approx(3 * 0.06), "1,200")


def test_a_chain_from_nothing_is_not_one_that_goes_on(options):
    Chain.open(options, 1, fresh=True).run()
    with pytest.raises(UsageError, match="began from nothing; name another --work"):
        Chain.open(options, 2, fresh=False)


def started(work: Path, log: Path) -> subprocess.Popen:
    argv = [sys.executable, str(Path(__file__).with_name("chained.py")), str(work), "0.012", str(SHARED / "training")]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("ab") as file:
        return subprocess.Popen([*argv, "--fresh"], cwd=ROOT, env=env, stdout=file, stderr=file)


def killed_in(part: str, work: Path, log: Path, folder: str) -> int:
    """Run the chain until `part` has a checkpoint in `folder` of its own, kill it, and return the checkpoint's step."""
    process, deadline = started(work, log), time.monotonic() + 900
    figures = work / folder / "figures.json"
    while not figures.exists():
        assert process.poll() is None, log.read_text(encoding="utf-8")[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stages = json.loads((work / "chain.json").read_text(encoding="utf-8"))[-1]["stages"]
    assert stages[part]["state"] == "training"
    return int(json.loads(figures.read_text(encoding="utf-8"))["steps"])


@needs_shared
@pytest.mark.slow
def test_the_whole_chain_is_killed_twice_and_ends_in_a_valid_profile(tmp_path, monkeypatch):
    work, log = tmp_path / "work", tmp_path / "log"
    step = killed_in("unet", work, log, "unet_128")
    learnt = (work / "autoencoder" / "checkpoint.pt").stat().st_mtime_ns
    killed_in("brushnet_random", work, log, "brushnet_random_256")
    assert started(work, log).wait(timeout=1500) == 0, log.read_text(encoding="utf-8")[-3000:]

    assert (work / "autoencoder" / "checkpoint.pt").stat().st_mtime_ns == learnt  # done stages stay as they are
    assert json.loads((work / "unet_128" / "figures.json").read_text(encoding="utf-8"))["steps"] >= step
    stages = json.loads((work / "chain.json").read_text(encoding="utf-8"))[-1]["stages"]
    assert {one["state"] for one in stages.values()} == {"done"}

    written = yaml.safe_load((work / "profile" / "mini.yaml").read_text(encoding="utf-8"))["parts"]
    bundled = yaml.safe_load(PROFILE.with_suffix(".yaml").read_text(encoding="utf-8"))["parts"]
    trained = {part for stage in STAGES for part in stage.writes} - {"scheduler"}
    assert {part for part in written if written[part]["sha256"] != bundled[part]["sha256"]} == trained

    # the profile paints: as it is read from its folder, with its digests checked
    from pipelines.diffusion.inpainting import InpaintingPipeline
    from pipelines.models import profile as profiles

    monkeypatch.setattr(profiles, "PROFILES", work / "profile")
    profiles.load_profile.cache_clear()
    try:
        pipeline = InpaintingPipeline.from_profile("mini", method="brushnet")
        assert pipeline.unet.config.block_out_channels[0] == 8
        assert not [check for check in profiles.verify(profiles.load_profile("mini")) if check.problem]
    finally:
        profiles.load_profile.cache_clear()

    page = (work / "index.html").read_text(encoding="utf-8")
    for stage in STAGES:
        assert f"<td>{stage.part}</td><td>done</td>" in page
        card = (work / "profile" / "mini" / stage.part / "CARD.md").read_text(encoding="utf-8")
        assert chain.NOTE.search(card), card
    shutil.rmtree(work)
