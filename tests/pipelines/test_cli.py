"""What the command prints: strangers' words as they are, whatever a terminal or a markup would make of them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from pipelines.cli import app, main
from pipelines.contracts import Artifact, Job, Product, Shot, ShotStep, State, Step, sha256_hex

NASTY = "[red]x[/] [/] :cup: \x1b[2J\x9b31m\x07\r"
SHOWN = r"[red]x[/] [/] :cup: \x1b[2J\x9b31m\x07\r"
"""What a reader must see of it."""


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal on which no cell is broken over lines."""
    monkeypatch.setenv("COLUMNS", "400")


def packshot(*arguments: str | Path) -> Result:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done


def shown(text: str) -> bool:
    """The nasty words are there literally, and no character of theirs reaches the terminal as an order."""
    return SHOWN in text and not set("\x1b\x9b\x07\r") & set(text)


@pytest.fixture(scope="module")
def run(ledger) -> str:
    """A run whose product and its rejection have nasty words, and whose publication was stopped for nasty reasons."""
    product = Product(NASTY, 1, NASTY, "", sha256_hex(b"photo"))
    shot = Shot(product, "studio", "web")
    cut = Job("cutout", 1, {"photo": product.photo or ""}, {})
    described = Job("describe", 1, {"photo": product.photo or ""}, {})
    output = Artifact(sha256_hex(b"cutout"), "cutout", "image/png", 6)
    ledger.start_run("nasty", "catalog_refresh", "studio", "web", triggered_by="packshot run")
    ledger.upsert_products([product])
    ledger.select("nasty", [shot], 8)
    for step in (
        Step(cut.key, cut, State.DONE, (output,), device=NASTY),
        Step(described.key, described, State.REJECTED, reason=NASTY),
    ):
        ledger.use("nasty", [(shot, [ShotStep(ledger.record(step), reused=False)])])
    ledger.finish_run("nasty", "failed", {"reason": NASTY})
    return "nasty"


def test_a_report_shows_skus_and_reasons_as_they_are(run: str) -> None:
    text = packshot("report", run).output
    assert shown(text)
    assert text.count(SHOWN) == 3  # what stopped publication; the SKU and its reason


def test_a_lineage_shows_sku_and_device_as_they_are(run: str) -> None:
    text = packshot("lineage", NASTY).output
    assert shown(text)
    assert text.count(SHOWN) == 2


def test_an_error_shows_what_was_asked_for_as_it_is(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["packshot", "report", f"no {NASTY}"])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("packshot: no run 'no [red]x[/] [/] :cup: ")
    assert not set("\x1b\x9b\x07\r") & set(printed.err)


def catalogue(folder: Path, photo: str) -> Path:
    file = folder / "catalog.csv"
    words = NASTY.replace("\r", "")  # which would end the row
    file.write_text(f"id,title,image_link,ground_truth_alpha\n{words},Mug,{photo},alpha.png\n", "utf-8")
    return file


@pytest.mark.slow
def test_a_measure_shows_skus_as_they_are(tmp_path: Path) -> None:
    alpha = np.zeros((96, 96), np.uint8)
    alpha[20:80, 30:70] = 255
    Image.fromarray(np.dstack([np.full((96, 96, 3), 120, np.uint8), alpha])).save(tmp_path / "mug.png")
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    text = packshot("measure", "cutout", catalogue(tmp_path, "mug.png")).output
    assert SHOWN.removesuffix(r"\r") in text
    assert "\x1b" not in text


def test_a_shoot_shows_skus_and_reasons_as_they_are(tmp_path: Path) -> None:
    done = packshot(
        "shoot", catalogue(tmp_path, "[red]none[/].png"), "--scene", "studio-sage", "--out", tmp_path / "out"
    )
    assert done.exit_code == 0
    assert SHOWN.removesuffix(r"\r") in done.stdout
    assert "[red]none[/].png" in done.stdout
    assert "\x1b" not in done.output


def test_a_scene_shows_its_title_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text('name: mine\ntitle: "Red [red]x[/] [/]"\nprompt: a photo of {product}\n', "utf-8")
    assert "Red [red]x[/] [/]: valid" in packshot("scenes", "check", file).output
