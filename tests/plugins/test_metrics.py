"""What Prometheus gets, and that real Prometheus and promtool agree with the rules and the dashboard of docker/."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Connection, event, text

from pipelines.ledger.decisions import Choice, decide, undo
from pipelines.ledger.metrics import Queue, read_metrics
from pipelines.ledger.postgres import PostgresLedger, connect
from pipelines.ledger.roles import MEND
from pipelines.settings import ROOT, Settings, get_settings

WATCH = ROOT / "docker" / "watch"
RULES = yaml.safe_load((WATCH / "alerts.yml").read_text())["groups"][0]["rules"]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
PANELS = json.loads((WATCH / "grafana/dashboards/packshot.json").read_text())["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
TOKEN = "a token for Prometheus"
OLD = ("NightlyNotFinished", "QueueOld", "Stalled")
"""Alerts that a ledger raises in which everything happened two days ago."""


@pytest.fixture(scope="module")
def promtool() -> str:
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("needs Debian's prometheus: apt-get install prometheus")
    return path


@contextmanager
def mending(settings: Settings) -> Iterator[Connection]:
    """A transaction of the ledger's owner, who alone may rewrite evidence."""
    with connect(settings.owner_database_url).begin() as connection:
        connection.execute(text(MEND))
        yield connection


@pytest.fixture(scope="module")
def old_run(run: dict[str, str], ledger: PostgresLedger, settings: Settings) -> None:
    """A run of two days ago with a published, a held and a rejected shot, a nightly one, and one that never ended."""
    ledger.start_run("night", "catalog_refresh", "oak", "web", triggered_by="scheduled")
    ledger.finish_run("night", "success")
    ledger.start_run("stuck", "campaign_backfill", "oak", "web")
    with mending(settings) as connection:
        for statement in (
            "UPDATE runs SET started_at = started_at - interval '2 days'",
            "UPDATE runs SET finished_at = finished_at - interval '2 days'",
            "UPDATE steps SET created_at = created_at - interval '2 hours'",
        ):
            connection.execute(text(statement))


@pytest.fixture(scope="module")
def app(settings: Settings) -> Iterator[str]:
    """Address of the plugin's web app below /packshot, as Airflow mounts it; without Airflow, which starts slowly."""
    import uvicorn
    from airflow.settings import prepare_syspath_for_config_and_plugins
    from fastapi import FastAPI

    prepare_syspath_for_config_and_plugins()
    from packshot_console import services
    from packshot_console.app import create_app

    root = FastAPI()
    root.mount("/packshot", create_app())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(root, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield f"127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=30)
    services.ledger.cache_clear()


@pytest.fixture(scope="module")
def client(app: str) -> Iterator[httpx.Client]:
    # the server ends a connection that was idle for five seconds, perhaps just when it is used again
    afresh = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=f"http://{app}/packshot", trust_env=False, limits=afresh) as client:
        yield client


@pytest.fixture(scope="module")
def open_route(app: str, old_run: None) -> Iterator[str]:
    """The app's address, with a token in its settings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACKSHOT_METRICS_TOKEN", TOKEN)
        patch.setenv("PACKSHOT_NIGHTLY_SCHEDULE", "@daily")
        patch.setenv("PACKSHOT_GPU_HOUR_PRICE", "2.5")
        get_settings.cache_clear()
        yield app
    get_settings.cache_clear()


def test_without_a_token_in_the_settings_there_is_no_such_route(client: httpx.Client) -> None:
    for headers in ({}, {"Authorization": "Bearer"}, {"Authorization": "Bearer None"}):
        assert client.get("/metrics", headers=headers).status_code == 404


def test_the_route_wants_its_token_which_opens_no_other(open_route: str, client: httpx.Client) -> None:
    for headers in ({}, {"Authorization": "Bearer another"}, {"Cookie": f"_token={TOKEN}"}):
        answer = client.get("/metrics", headers=headers)
        assert answer.status_code == 401
        assert "packshot_" not in answer.text
    assert client.get("/runs", headers={"Authorization": f"Bearer {TOKEN}"}).status_code != 200


def scraped(client: httpx.Client) -> dict[str, dict[tuple[str, ...], float]]:
    """Metric → values of its labels, by the labels' names → value."""
    answer = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200
    return {
        family.name: {tuple(sample.labels.values()): sample.value for sample in family.samples}
        for family in text_string_to_metric_families(answer.text)
    }


def test_the_metrics_are_those_of_the_ledger_and_are_kept_for_a_while(
    open_route: str, client: httpx.Client, ledger
) -> None:
    queries = []
    event.listen(ledger.engine, "before_cursor_execute", lambda *call: queries.append(call[2]))
    read_metrics(ledger.engine)
    assert len(queries) <= 9

    found = scraped(client)
    states = {state: count for (_, _, state), count in found["packshot_images"].items()}
    assert states == {"published": 1, "held": 1, "rejected": 1}
    assert found["packshot_up"] == {("store",): 1, ("ledger",): 1}
    assert found["packshot_day_inspected"] == {("oak",): 2}
    assert found["packshot_day_held"] == {("oak",): 1}
    assert found["packshot_day_held_by_check"] == {("overcompletion", "oak"): 1}
    assert found["packshot_day_overcompletion_ratio"] == {(): 0.5}
    assert found["packshot_day_step_seconds"][("generate",)] == 3
    assert found["packshot_day_steps"][("cutout", "rejected")] == 1
    assert found["packshot_image_seconds"] == {("oak",): 18}, "all twelve steps, for the one image"
    assert found["packshot_image_cost"] == {("EUR", "oak"): pytest.approx(18 / 3600 * 2.5)}
    assert found["packshot_runs"][("campaign_backfill", "running")] == 1
    assert found["packshot_queue_images"] == {(): 1}
    assert 47 < found["packshot_queue_age_seconds"][()] / 3600 < 49
    assert 47 < (time.time() - found["packshot_nightly_timestamp_seconds"][()]) / 3600 < 49

    ledger.finish_run("stuck", "failed")
    assert scraped(client) == found
    ledger.start_run("stuck", "campaign_backfill", "oak", "web")


def test_an_image_that_a_person_decided_waits_for_nobody(run, ledger: PostgresLedger) -> None:
    made = decide(ledger.engine, run["final"], Choice.APPROVE, "ada")
    assert read_metrics(ledger.engine).queue == Queue(0, None)
    undo(ledger.engine, made.id, "ada")
    assert read_metrics(ledger.engine).queue.images == 1


def test_every_metric_is_documented_with_its_labels_and_its_meaning(app: str) -> None:
    from packshot_console.metrics import METRICS

    rows = [
        f"| `{name}` | {', '.join(f'`{label}`' for label in labels) or '–'} | {meaning} |"
        for name, (meaning, labels) in METRICS.items()
    ]
    page = (ROOT / "docs/reference/metrics.md").read_text("utf-8")
    assert [line for line in page.splitlines() if line.startswith("| `packshot")] == rows


def test_the_containers_mount_what_is_there_and_need_only_what_the_example_names() -> None:
    compose = (ROOT / "docker/compose.watch.yaml").read_text()
    known = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]
    example = set(re.findall(r"^(\w+)=", (ROOT / "docker/env.example").read_text(), re.M))
    assert set(re.findall(r"\$\{(\w+)|environment: ([A-Z_]+)$", compose, re.M))
    assert {name for pair in re.findall(r"\$\{(\w+)|environment: ([A-Z_]+)$", compose, re.M) for name in pair} - {
        ""
    } <= example
    for name, service in yaml.safe_load(compose)["services"].items():
        assert name in known or "image" in service, f"{name} is neither known nor new"
        for volume in service.get("volumes", ()):
            if volume.startswith("./"):
                assert (ROOT / "docker" / volume.split(":")[0]).exists(), volume


@pytest.mark.medium
def test_every_alert_fires_in_a_test_of_its_own_and_has_its_chapter_in_the_runbook(promtool: str) -> None:
    done = subprocess.run(
        [promtool, "test", "rules", "alerts.test.yml"], cwd=WATCH, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tested = {
        case["alertname"]
        for test in yaml.safe_load((WATCH / "alerts.test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
        if "exp_alerts" in case
    }
    assert tested == set(ALERTS)
    runbook = (ROOT / "docs/how-to/watch.md").read_text("utf-8")
    assert re.findall(r"^### (Packshot\w+)$", runbook, re.M) == list(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook_url"] == f"docs/how-to/watch.md#{name.lower()}"


def test_what_is_read_of_airflow_is_what_airflow_exports() -> None:
    import airflow

    listed = next(Path(airflow.__file__).parent.glob("**/metrics_template.yaml")).read_text()
    names = set(re.findall(r"airflow_(\w+)", json.dumps([QUERIES, RULES])))
    assert names
    assert {name for name in names if f'"{name.replace("_", ".", 1)}"' not in listed} == set()


@pytest.fixture(scope="module")
def prometheus(
    promtool: str, open_route: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Any]]:
    """A real Prometheus with the configuration of docker/, which scrapes the api-server and waits for no alert."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((WATCH / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    job = config["scrape_configs"][0]
    job["authorization"]["credentials_file"] = str(folder / "token")
    job["static_configs"] = [{"targets": [open_route]}]
    config["scrape_configs"] = [job]
    del config["alerting"]
    (folder / "token").write_text(TOKEN)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (folder / "alerts.yml").write_text(re.sub(r"^ +for: .*\n", "", (WATCH / "alerts.yml").read_text(), flags=re.M))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    argv = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    process = subprocess.Popen([*argv, f"--web.listen-address={address}"], stderr=subprocess.DEVNULL)

    def ask(path: str, **params: str) -> Any:
        answer = httpx.get(f"http://{address}/api/v1/{path}", params=params, trust_env=False).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def is_scraped() -> bool:
        try:
            return bool(ask("query", query="packshot_images")["result"])
        except (httpx.TransportError, ValueError):  # not there yet, or there and not ready
            return False

    try:
        until = time.monotonic() + 30
        while not is_scraped():
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.3)
        yield ask
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.mark.medium
def test_every_query_of_the_dashboard_has_an_answer(prometheus) -> None:
    for query in QUERIES:
        found = prometheus("query", query=query)["result"]
        assert found or "airflow_" in query or "failed|rejected" in query, query


@pytest.mark.medium
def test_a_run_that_stalled_and_an_old_queue_and_a_missing_night_raise_alerts(prometheus) -> None:
    until = time.monotonic() + 20
    while {f"Packshot{name}" for name in OLD} != (
        raised := {alert["labels"]["alertname"] for alert in prometheus("alerts")["alerts"]}
    ):
        assert time.monotonic() < until, raised
        time.sleep(0.5)
