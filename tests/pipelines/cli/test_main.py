"""What the command prints: strangers' words as they are, whatever a terminal or a markup would make of them."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from pipelines.cli import console
from pipelines.cli.console import exit_code
from pipelines.cli.main import app, main
from pipelines.cli.runs import _campaign_total
from pipelines.contracts import Artifact, Job, Product, Shot, ShotState, ShotStep, State, Step, sha256_hex
from pipelines.errors import UsageError
from pipelines.quality.likeness import likeness_code
from pipelines.services import airflow_client as airflow_api
from pipelines.services.airflow_client import Airflow
from pipelines.settings import ROOT, Settings, get_settings
from pipelines.store import S3Store
from pipelines.training.__main__ import TRAINERS

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


def test_decisions_are_written_to_a_file_and_an_unknown_run_is_an_error(run: str, tmp_path: Path) -> None:
    file = tmp_path / "decisions.csv"
    answer = json.loads(packshot("decisions", "--run", run, "--out", file, "--json").stdout)
    assert answer == {"decisions": 0, "file": str(file)}
    assert file.read_text().startswith("decision,decided_at,by,choice,reason,held_for,sku,")
    file.unlink()
    refused = CliRunner().invoke(app, ["decisions", "--run", "no-such", "--out", str(file)])
    assert "no run 'no-such' in the ledger" in str(refused.exception)
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize(
    ("setting", "value", "arguments", "said"),
    [
        ("PACKSHOT_DATABASE_URL", "", ("report",), "PACKSHOT_DATABASE_URL is not set"),
        ("PACKSHOT_SHEET_KEY", "mine", ("up", "--end-sheet-links"), "PACKSHOT_SHEET_KEY is set"),
        ("PACKSHOT_DATABASE_URL", "", ("models", "revisions"), "PACKSHOT_DATABASE_URL is not set"),
        ("PACKSHOT_DATABASE_URL", "sesame", ("report",), "PACKSHOT_DATABASE_URL is no address of a Postgres database"),
        ("PACKSHOT_DATABASE_URL", "postgresql+psycopg2://me:sesame@127.0.0.1:1/x", ("report",), "does not answer"),
        ("PACKSHOT_MODELS_DIR", "/proc/none", ("models", "fetch", "sd15", "upscaler"), "/proc/none: No such file"),
        ("PACKSHOT_PROFILE", "mini", ("experiment", "overcompletion", "--out", "/proc/none"), "/proc/none: No such"),
    ],
)
def test_what_is_away_is_said_in_one_line(
    setting: str,
    value: str,
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PACKSHOT_STATE_DIR", str(tmp_path))
    monkeypatch.setenv(setting, value)
    get_settings.cache_clear()
    try:
        assert exits(monkeypatch, *arguments) in (1, 2)
    finally:
        get_settings.cache_clear()
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("packshot: ")]
    assert said in line
    assert "sesame" not in line


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def list_scenes() -> None:
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"an image")

    monkeypatch.setattr("pipelines.scenes.list_scenes", list_scenes)
    assert exits(monkeypatch, "scenes", "list") == 1
    assert "No space left on device: make room, and repeat the command" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("pipelines.scenes.list_scenes", broken)
    monkeypatch.setattr(sys, "argv", ["packshot", "scenes", "list"])
    with pytest.raises(ZeroDivisionError):
        main()


def test_what_was_not_held_is_not_approved(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exits(monkeypatch, "approve", NASTY, "--run", run) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert shown(printed.err)
    assert "is rejected in run nasty: only a held image is approved" in printed.err


class StubAirflow(BaseHTTPRequestHandler):
    """As much of Airflow's API as `run --wait` asks for. Its one run fails in `plan`, and in `summary` for that."""

    protocol_version = "HTTP/1.1"
    away = 0
    """Requests that are answered with 503 before one is answered; logging in always works."""
    still = 0
    """Requests for the run that find it running, before one finds it failed."""
    waits = False
    """Whether task `publish` waits for another try meanwhile. Otherwise the scheduler is dead."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({"access_token": "t", "dag_run_id": "manual__1+00:00"})

    def do_GET(self) -> None:
        still = StubAirflow.still > 0
        tasks = [
            {"task_id": name, "map_index": -1, "state": state, "end_date": f"2026-01-01T00:00:0{second}Z"}
            for name, state, second in (
                ("summary", "failed", 2),
                ("publish", "up_for_retry" if still and StubAirflow.waits else "upstream_failed", 1),
                ("plan", "failed", 0),
            )
        ]
        whole = {"task_instances": tasks, "total_entries": len(tasks)}
        if "/health" in self.path:
            self.answer({"metadatabase": {"status": "healthy"}, "scheduler": {"status": "unhealthy"}})
        elif "/taskInstances" in self.path:
            StubAirflow.still -= still
            self.answer(whole)
        else:
            self.answer({"state": "running" if still else "failed"})

    def answer(self, document: dict[str, object]) -> None:
        body = json.dumps(document).encode()
        away = StubAirflow.away > 0 and self.path != "/auth/token"
        StubAirflow.away -= away
        self.send_response(503 if away else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not on the test's output."""


@pytest.fixture
def airflow(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), StubAirflow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        environment = settings.environment() | {
            "PACKSHOT_AIRFLOW_URL": url,
            "PACKSHOT_STATE_DIR": str(tmp_path / "state"),
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        get_settings.cache_clear()
        yield url
        get_settings.cache_clear()
        server.shutdown()


def exits(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int | str | None:
    """Exit code of the whole command, as a shell sees it."""
    monkeypatch.setattr(sys, "argv", ["packshot", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        main()
    return exit.value.code


def test_a_run_whose_plan_failed_names_the_task_and_its_log(
    run: str,
    airflow: str,
    store: S3Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exits(monkeypatch, "run", catalogue(tmp_path, "none.jpg"), "--scene", "studio-sage", "--wait", "--json") == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    page = f"{airflow}/dags/catalog_refresh/runs/manual__1%2B00%3A00/tasks"
    first, second, last = [line for line in printed.err.splitlines() if "failed" in line or "packshot:" in line][-3:]
    assert first == f"task plan failed; its log: {page}/plan"
    assert second == f"task summary failed; its log: {page}/summary"
    assert last == "packshot: run manual__1+00:00 ended before it was planned: nothing was made"
    assert exits(monkeypatch, "report", "latest") == 2  # and not the report of the run before it
    assert "manual__1+00:00, is not planned yet" in capsys.readouterr().err


def test_a_run_is_followed_through_hiccups_of_the_api(airflow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Airflow(get_settings()) as api:
        monkeypatch.setattr(StubAirflow, "away", 3)
        assert api.follow("catalog_refresh", "manual__1", poll_seconds=0.01) is False
        assert StubAirflow.away == 0
        monkeypatch.setattr(airflow_api, "PATIENCE", 0.0)
        monkeypatch.setattr(StubAirflow, "away", 3)
        with pytest.raises(httpx.HTTPStatusError, match="503"):
            api.follow("catalog_refresh", "manual__1", poll_seconds=0.01)


@pytest.mark.parametrize(
    ("waits", "away", "said"),
    [
        (True, 0, "publish failed and waits for another try; its log in Airflow says why"),
        (False, 0, "Airflow's scheduler sends no heartbeat: `packshot up` starts it again"),
        (False, 40, "`packshot status` shows the services, `packshot up` starts them again"),
    ],
)
def test_a_run_that_stands_still_says_so_once_with_the_remedy(
    airflow: str, monkeypatch: pytest.MonkeyPatch, waits: bool, away: int, said: str
) -> None:
    monkeypatch.setattr(airflow_api, "STANDSTILL", 0.1)
    monkeypatch.setattr(StubAirflow, "waits", waits)
    monkeypatch.setattr(StubAirflow, "still", 0 if away else 40)
    monkeypatch.setattr(StubAirflow, "away", away)
    lines: list[str] = []
    with Airflow(get_settings()) as api:
        assert api.follow("catalog_refresh", "manual__1", warn=lines.append, poll_seconds=0.01) is False
    assert len(lines) == 1
    assert lines[0].startswith("nothing has changed for ")
    assert said in lines[0]


def test_an_api_that_fails_is_said_in_one_line(
    airflow: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StubAirflow, "away", 99)
    asked = ("campaign", "--scene", "studio-sage", "--from", "2026-01-01", "--to", "2026-01-02")
    assert exits(monkeypatch, *asked) == 1
    assert capsys.readouterr().err.strip().endswith("/api/v2/backfills answers 503 Service Unavailable")


def test_a_campaign_of_more_days_than_airflow_makes_runs_of_is_refused(
    airflow: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StubAirflow, "away", 99)  # it is not asked
    asked = ("campaign", "--scene", "studio-sage", "--from", "1990-01-01", "--to", "2020-01-01")
    assert exits(monkeypatch, *asked) == 2
    assert "are 10958 days, each a run: a campaign has 366 at most" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"runs": ["a", "b"], "shots": None, "reused": None, "seconds_expected": None}, "2 runs"),
        ({"runs": ["a"], "shots": 3, "reused": 6, "seconds_expected": 9.6},
         "1 run, 3 shots, 6 steps reused, about 10 s to compute"),
        ({"runs": ["a"], "shots": 0, "reused": 0, "seconds_expected": None},
         "1 run, 0 shots, 0 steps reused; no product is in this choice: check --sku, --category, --reprocess and the "
         "days"),
    ],
)  # fmt: skip
def test_a_campaign_without_a_product_says_so(document: dict[str, object], said: str) -> None:
    assert _campaign_total(document, success=True) == said
    assert "no product" not in _campaign_total(document, success=False)


def test_who_stops_waiting_is_told_that_the_run_goes_on(
    run: str,
    airflow: str,
    store: S3Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Airflow, "follow", interrupted)
    assert exits(monkeypatch, "run", catalogue(tmp_path, "none.jpg"), "--scene", "studio-sage", "--wait") == 130
    said = "run manual__1+00:00 goes on in Airflow: `packshot report manual__1+00:00` shows what becomes of it"
    assert said in capsys.readouterr().err


def test_a_campaign_of_days_to_come_is_refused(
    airflow: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StubAirflow, "away", 99)  # it is not asked
    asked = ("campaign", "--scene", "studio-sage", "--from", "2026-01-01", "--to", "2999-01-01")
    assert exits(monkeypatch, *asked) == 2
    assert "2999-01-01 is in the future" in capsys.readouterr().err


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
    assert done.exit_code == 2  # its one product was rejected
    assert "[red]x[/] [/] :cup: [2J 31m" in done.stdout  # the feed's reader takes control characters out of an id
    assert "[red]none[/].png" in done.stdout
    assert "\x1b" not in done.output


@pytest.mark.parametrize("option", [("--method", "nope"), ("--method", ""), ("--seed", "-1"), ("--seed", "x")])
def test_a_wrong_option_of_a_shoot_is_refused_before_anything_is_made(tmp_path, monkeypatch, capsys, option) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    asked = ("shoot", tmp_path / "photo.png", "--scene", "studio-sage", "--out", tmp_path / "out", *option)
    assert exits(monkeypatch, *asked) == 2
    assert option[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_method_that_the_profile_has_no_models_for_is_refused_before_anything_is_made(tmp_path, monkeypatch, capsys):
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    asked = ("shoot", tmp_path / "photo.png", "--scene", "studio-sage", "--out", tmp_path / "out")
    assert exits(monkeypatch, *asked, "--method", "fooocus") == 2
    assert "needs fooocus_head and fooocus_patch, which profile mini does not have" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["run", "campaign"])
def test_a_wrong_reprocess_is_refused_before_anything_is_sent(tmp_path, monkeypatch, capsys, command) -> None:
    rest = (
        ("--from", "2026-01-01", "--to", "2026-01-01") if command == "campaign" else (catalogue(tmp_path, "none.jpg"),)
    )
    assert exits(monkeypatch, command, *rest, "--scene", "studio-sage", "--reprocess", "some") == 2
    assert "--reprocess" in capsys.readouterr().err


def test_an_unusable_photo_is_wrong_input(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"not an image")
    done = packshot("shoot", tmp_path / "photo.jpg", "--scene", "studio-sage", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "rejected" in done.stdout


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ([], 0),
        (["published", "rejected", "held"], 0),
        (["held"], 0),
        (["rejected", "rejected"], 2),
        (["published", "failed"], 1),
        (["rejected", "failed"], 1),
    ],
)
def test_the_exit_code_sums_up_what_became_of_the_products(states: list[str], code: int) -> None:
    assert exit_code([ShotState(state) for state in states]) == code


def test_training_into_a_folder_without_the_parts_below_says_which_are_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"base_high_key builds on autoencoder, clip, unet, which .* lacks"):
        CliRunner().invoke(app, ["train", "base_high_key", "--out", str(tmp_path)], catch_exceptions=False)


def test_the_parts_that_the_help_of_train_names_can_be_trained() -> None:
    named = packshot("train", "--help").stdout
    assert [part for part in TRAINERS if not re.search(rf"\b{part}\b", named)] == []


def test_the_help_of_a_fine_tune_lists_its_own_options_and_that_of_another_part_does_not() -> None:
    own = re.sub(r"\x1b\[[0-9;]*m", "", packshot("train", "brushnet", "--help").stdout)
    assert {"--instances", "--salient-minutes", "--register", "--promote"} <= set(re.findall(r"--[a-z-]+", own))
    assert "--instances" not in packshot("train", "unet", "--help").stdout


def test_a_scene_shows_its_title_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text('name: mine\ntitle: "Red [red]x[/] [/]"\nprompt: a photo of {product}\n', "utf-8")
    assert "Red [red]x[/] [/]: valid" in packshot("scenes", "check", file).output


def test_before_the_first_up_no_address_and_no_login_is_invented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACKSHOT_STATE_DIR", str(tmp_path / "state"))
    for name in ("DATABASE_URL", "S3_ENDPOINT", "AIRFLOW_URL"):
        monkeypatch.setenv(f"PACKSHOT_{name}", "")
    get_settings.cache_clear()
    try:
        shown, document = packshot("status"), json.loads(packshot("status", "--json").output)
    finally:
        get_settings.cache_clear()
    assert shown.exit_code == 1
    assert f"Nothing is set up in {tmp_path / 'state'}: `packshot up` starts the services" in shown.output
    assert "127.0.0.1" not in shown.output
    assert "admin" not in shown.output
    assert not document["set_up"]
    assert {service["address"] for service in document["services"]} == {""}
    assert document["ui"] == ""


def test_status_says_what_starts_a_service_that_is_down(services: Settings) -> None:
    assert "`packshot up` starts what is down" in packshot("status").output  # the tests' services are without Airflow


def test_no_address_and_no_path_is_cut_on_a_narrow_terminal(
    services: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    shown = packshot("status").output
    assert "…" not in shown.replace("/ …", "")  # the login of an Airflow that is not there
    monkeypatch.chdir(tmp_path)
    assert "…" not in packshot("scenes", "list").output
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(ROOT)
    assert " pipelines/scenes/oak-window.jpg " in packshot("scenes", "list").output


@pytest.mark.parametrize("terminal", [True, False])
def test_passwords_are_shown_on_a_terminal_alone(
    services: Settings, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = services.state_dir / "airflow" / "passwords.json"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"admin": "a-secret"}))
    passwords = json.loads(file.read_text()).values()
    monkeypatch.setattr(console.out, "_force_terminal", terminal)
    said = packshot("status").output
    assert all((password in said) is terminal for password in passwords)
    assert (str(file) in said) is not terminal


def test_two_products_with_nearly_the_same_picture_are_named(ledger) -> None:
    code = likeness_code(np.full((9, 9, 4), 255, np.uint8))
    shots = [Shot(Product(f"TWIN-{n}", n, f"Cup {n}", "", sha256_hex(b"photo")), "studio", "web") for n in (2, 3)]
    ledger.start_run("twins", "catalog_refresh", "studio", "web")
    ledger.upsert_products([shot.product for shot in shots])
    ledger.select("twins", shots, 8)
    for shot in shots:
        job = Job("inspect", 1, {"photo": shot.product.photo or ""}, {"sku": shot.sku})
        step = ledger.record(Step(job.key, job, State.DONE, facts={"likeness": code}))
        ledger.use("twins", [(shot, [ShotStep(step, reused=False)])])
    assert "TWIN-2 and TWIN-3 show nearly the same picture" in packshot("report", "twins").output
    assert json.loads(packshot("report", "twins", "--json").output)["alike"] == [["TWIN-2", "TWIN-3"]]
