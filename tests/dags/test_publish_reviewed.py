"""From a decision to what follows from it: the event that starts the DAG, and the image that the DAG publishes."""

from __future__ import annotations

import time

import pytest
from airflow.dag_processing.dagbag import DagBag
from sqlalchemy import func, select

from pipelines.ledger.decisions import Choice, decide
from pipelines.ledger.reports import report
from pipelines.scenes import load_scene, scene_names
from pipelines.settings import ROOT
from tests.plugins.conftest import hold

pytestmark = pytest.mark.slow

SCENE = load_scene(scene_names()[0])


def test_an_approval_is_published_and_a_poke_queues_the_dag(airflow_db, ledger, store, damage) -> None:
    from airflow.models.asset import AssetDagRunQueue, AssetEvent, AssetModel
    from airflow.settings import Session
    from airflow.utils.session import create_session
    from packshot_console.poke import ASSET, EVERY_SECONDS, poke

    finals = hold(ledger, store, "r1", {"CUP": "Cup", "POT": "Pot"}, scene=SCENE.name)
    decide(ledger.engine, finals["CUP"], Choice.APPROVE, "ada")
    # the DAG leaves time to undo what was decided just now
    damage("UPDATE decisions SET created_at = created_at - interval '1 minute'")
    dag = DagBag(str(ROOT / "dags")).dags["publish_reviewed"]
    ended = dag.test()
    assert ended.state == "success"
    states = {shot.sku: shot.state.value for shot in report(ledger.engine, "r1").shots}
    assert states == {"CUP": "published", "POT": "held"}

    poke()
    poke()
    with create_session() as session:
        queued = select(AssetDagRunQueue.target_dag_id).join(AssetModel, AssetModel.id == AssetDagRunQueue.asset_id)
        assert session.scalars(queued.where(AssetModel.name == ASSET)).all() == ["publish_reviewed"]
        events = select(func.count(AssetEvent.id)).join(AssetModel, AssetModel.id == AssetEvent.asset_id)
        assert session.scalar(events.where(AssetModel.name == ASSET)) == 1
        time.sleep(EVERY_SECONDS + 0.5)
        assert session.scalar(events.where(AssetModel.name == ASSET)) == 2, "the last decision has its event too"
    Session.remove()
