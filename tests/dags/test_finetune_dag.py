"""brushnet_finetune from published cutouts to a registered revision, every task of it, at 64 px and one step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from airflow.dag_processing.dagbag import DagBag
from airflow.utils.state import DagRunState
from PIL import Image

from operators.finetune import promote as promotion
from operators.finetune import register
from pipelines.contracts import Artifact, Job, Product, Publication, Shot, ShotStep, State, Step, sha256_hex
from pipelines.models import profile as models
from pipelines.models.profile import load_profile
from pipelines.revisions.registry import promote, revisions
from pipelines.settings import ROOT
from pipelines.training import brushnet, evaluate, finetune
from pipelines.training.data import is_held_out
from pipelines.training.finetune import Finetune, TrainingStage
from pipelines.training.sources import Dataset, gather_ledger
from pipelines.vision.photos import png_bytes

pytestmark = pytest.mark.slow
NAMES = [f"sku {n}" for n in range(60)]
HELD_OUT = [name for name in NAMES if is_held_out(name)][:2]
LEARNT = [name for name in NAMES if not is_held_out(name)][:3]
FORM = {
    "categories": ["home"],
    "salient_minutes": 0,
    "steps": 1,
    "side": 64,
    "products": 2,
    "seeds": 1,
    "evaluate_minutes": 0,
}


@pytest.fixture
def state_dir(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A worker's own, empty; few shots, samplers of few steps, and models that paint at 64 px."""
    own = settings.model_copy(update={"state_dir": tmp_path / "state"})
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "mini").symlink_to(models.PROFILES / "mini")
    document = yaml.safe_load((models.PROFILES / "mini.yaml").read_text("utf-8")) | {"native_size": 64}
    (tmp_path / "profiles" / "mini.yaml").write_text(yaml.safe_dump(document), "utf-8")
    monkeypatch.setattr(models, "PROFILES", tmp_path / "profiles")
    for module in ("pipelines.settings", "pipelines.models.profile"):
        monkeypatch.setattr(f"{module}.get_settings", lambda: own)
    monkeypatch.setattr(brushnet, "show", lambda *args: None)
    monkeypatch.setattr(finetune, "SHOTS", 4)
    prepare = evaluate.Evaluator.prepare
    monkeypatch.setattr(evaluate.Evaluator, "prepare", lambda *args, **rest: prepare(*args, **{**rest, "steps": 2}))
    load_profile.cache_clear()
    yield tmp_path / "state"
    load_profile.cache_clear()


@pytest.fixture
def published(ledger, store) -> None:
    """Five products with published images, one of them of another category."""
    shots = [
        Shot(Product(sku, n, f"Lamp {n}", "Home > Light", sha256_hex(sku.encode())), "oak-window", "web")
        for n, sku in enumerate(HELD_OUT + LEARNT)
    ]
    shots.append(Shot(Product("spade", 9, "Spade", "Garden", sha256_hex(b"spade")), "oak-window", "web"))
    ledger.start_run("made", "catalog_refresh", "oak-window", "web")
    ledger.upsert_products([shot.product for shot in shots])
    ledger.select("made", shots, 8)
    for n, shot in enumerate(shots):
        rgba = np.zeros((80, 60, 4), np.uint8)
        rgba[20:70, 10:50] = [40 * n, 200, 90, 255]
        outputs = {
            "cutout": ("cutout", store.put(png_bytes(Image.fromarray(rgba, "RGBA")), "image/png")),
            "publish": ("published", sha256_hex(shot.sku.encode())),
        }
        used = []
        for stage, (role, digest) in outputs.items():
            job = Job(stage, 1, {}, {"sku": shot.sku})
            step = Step(job.key, job, State.DONE, (Artifact(digest, role, "image/png", 1),))
            used.append(ShotStep(ledger.record(step), reused=False))
        ledger.use("made", [(shot, used)])
    ledger.publish("made", [Publication(s.sku, "oak-window", "web", sha256_hex(s.sku.encode())) for s in shots])


def test_from_the_shops_cutouts_to_a_revision_that_a_person_may_promote(
    airflow_db, published, ledger, store, state_dir, tmp_path
):
    from airflow.settings import Session

    dag = DagBag(str(ROOT / "dags")).dags["brushnet_finetune"]
    run = dag.test(run_conf=FORM)
    assert run.state is DagRunState.SUCCESS
    Session.remove()

    [made] = revisions(ledger.engine, "mini", "brushnet")
    assert made.by == f"brushnet_finetune {run.run_id}"
    assert not made.promoted, "two products cannot show that it is better"
    assert made.parent == load_profile("mini").ref("brushnet").sha256
    learnt = Dataset.load(store, made.data)
    assert [picture.product for picture in learnt.pictures] == sorted(HELD_OUT + LEARNT)
    assert made.data == gather_ledger(ledger.engine, categories=["Home"]).save(store)
    assert made.stages.keys() == {"instance"}
    figures = made.stages["instance"]
    assert (figures["products"], figures["pictures"], figures["steps"], figures["source"]) == (3, 3, 1, "ledger")
    assert {score.product for score in made.evaluation.scores} == set(HELD_OUT)
    assert {"config.json", "frozen_set.png"} <= made.files.keys()

    # registering again on another worker, with nothing but store and ledger in common, is the same revision
    job = Finetune(TrainingStage("training", 0.0), TrainingStage(made.data, 30.0, 1), side=64)
    job.folder(load_profile("mini"), state_dir).rename(tmp_path / "elsewhere")
    context = {"dag": SimpleNamespace(dag_id="brushnet_finetune"), "run_id": "again"}
    told = register.function(
        {"salient": "training", "instance": made.data},
        {},
        {"figures": dict(figures), "files": dict(made.files)},
        params=dag.params.dump() | FORM,
        **context,
    )
    assert told["sha256"] == made.sha256
    assert len(revisions(ledger.engine, "mini")) == 1

    refused = promotion.function(told, params={"promote": True}, **context)
    assert refused["promoted"] is False
    assert "2 products" in refused["reason"]
    unwanted = promotion.function(told, params={"promote": False}, **context)
    assert unwanted == {"promoted": False, "reason": "not asked for"}
    promote(ledger.engine, load_profile("mini"), "brushnet", made.revision, "ada", force=True)
    assert promotion.function(told, params={"promote": True}, **context) == {
        "promoted": True,
        "reason": "it was already",
    }
    assert load_profile("mini").ref("brushnet").sha256 == made.sha256
