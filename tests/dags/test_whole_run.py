"""catalog_refresh from the feed to the published set, every task of it, on the bundled models."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.utils.state import DagRunState
from sqlalchemy import text

from pipelines.ledger.postgres import PostgresLedger
from pipelines.ledger.reports import Report, list_runs, report
from pipelines.settings import ROOT, get_settings
from pipelines.store import S3Store

pytestmark = pytest.mark.slow

SAMPLE = ROOT / "pipelines" / "sample"
SCENE = "oak-window"


@pytest.fixture(scope="module")
def feed(tmp_path_factory) -> Path:
    """Two products of the sample, and one whose photo is no image."""
    folder = tmp_path_factory.mktemp("feed")
    with (SAMPLE / "catalog.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[2:4]
    for row in rows:
        (folder / Path(row["image_link"]).name).write_bytes((SAMPLE / row["image_link"]).read_bytes())
    (folder / "broken.jpg").write_bytes(b"not an image at all")
    with (folder / "catalog.csv").open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["id", "title", "product_type", "image_link"])
        out.writerows([r["id"], r["title"], r["product_type"], Path(r["image_link"]).name] for r in rows)
        out.writerow(["BROKEN", "A broken photo", "Kitchen", "broken.jpg"])
    return folder / "catalog.csv"


@pytest.fixture(scope="module")
def refresh(airflow_db, settings, store, feed):
    """Run the DAG in this process; returns what the ledger says about the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACKSHOT_SHARD_SIZE", "2")
        get_settings.cache_clear()
        from airflow.settings import Session

        bag = DagBag(str(ROOT / "dags"))

        def run(**params: Any) -> tuple[DagRunState, Report]:
            conf = {"feed": str(feed), "scene": SCENE, "triggered_by": "packshot run", **params}
            ended = bag.dags["catalog_refresh"].test(run_conf=conf)
            return ended.state, report(PostgresLedger(_engine()).engine, ended.run_id)

        yield run
        Session.remove()  # the database goes before the interpreter does
    get_settings.cache_clear()


def _engine():
    from pipelines.ledger.postgres import connect

    return connect(get_settings().database_url)


@pytest.fixture(scope="module")
def first(refresh) -> tuple[DagRunState, Report]:
    return refresh()


def test_every_product_of_the_feed_is_accounted_for(first) -> None:
    state, found = first
    assert state is DagRunState.SUCCESS
    assert (found.products, found.failed, found.pending) == (3, 0, 0)
    assert (found.published, found.rejected) == (2, 1)
    outcomes = {shot.sku: shot for shot in found.shots}
    assert outcomes["BROKEN"].state == "rejected"
    assert "not an image" in outcomes["BROKEN"].reason
    assert found.steps["cutout"].computed == 3
    assert found.steps["inspect"].computed == 2
    assert set(found.documents) >= {"validation of the catalogue", "validation of the scores", "feed"}


def test_two_shards_were_mapped(first, ledger) -> None:
    run = first[1].run
    assert [len(ledger.shots(run, shard)) for shard in (0, 1, 2)] == [2, 1, 0]


def test_every_artifact_is_in_the_store_under_the_digest_of_its_bytes(first, ledger, store: S3Store) -> None:
    with ledger.engine.connect() as connection:
        digests = set(connection.scalars(text("SELECT digest FROM artifacts")))
    checked = {item.sha256 for item in store.verify_all() if item.ok}
    assert digests <= checked
    assert len(digests) >= 2 * 8


def test_the_same_feed_again_computes_nothing(first, refresh) -> None:
    state, again = refresh()
    assert state is DagRunState.SUCCESS
    assert {stage: count.computed for stage, count in again.steps.items()} == dict.fromkeys(again.steps, 0)
    assert again.steps["generate"].reused == first[1].steps["generate"].computed
    assert {s.sku: s.state for s in again.shots} == {s.sku: s.state for s in first[1].shots}


def test_another_scene_computes_no_cutout_and_no_description(first, refresh) -> None:
    state, other = refresh(scene="studio-sage", limit=1)
    assert state is DagRunState.SUCCESS
    assert (other.steps["cutout"].computed, other.steps["cutout"].reused) == (0, 1)
    assert (other.steps["describe"].computed, other.steps["describe"].reused) == (0, 1)
    assert other.steps["generate"].computed >= 1


def test_the_runs_can_be_listed_newest_first(first, ledger) -> None:
    listed = list_runs(ledger.engine)
    assert listed[-1].run == first[1].run
    assert listed[-1].dag_id == "catalog_refresh"
