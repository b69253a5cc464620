"""A fine-tune from the ledger's approved cutouts to a promoted revision, task by task, at 64 px and one step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from operators.finetune import (
    GatherPicturesOperator,
    PromoteRevisionOperator,
    RegisterRevisionOperator,
    TrainStageOperator,
)
from pipelines.contracts import Artifact, Job, Product, Shot, ShotStep, State, Step, sha256_hex
from pipelines.errors import UsageError
from pipelines.ledger import Publication
from pipelines.models import load_profile
from pipelines.revisions import promote, revisions
from pipelines.training import brushnet, finetune
from pipelines.training.data import is_held_out
from pipelines.training.sources import Dataset
from pipelines.vision.photos import png_bytes

NAMES = [f"sku {n}" for n in range(60)]
SKUS = [name for name in NAMES if is_held_out(name)][:2] + [name for name in NAMES if not is_held_out(name)][:3]
BUDGET = {"salient_minutes": "0", "salient_steps": "", "minutes": "30.0", "steps": "1", "side": "64"}
EXAM = {"products": "2", "seeds": "1"}


@pytest.fixture
def state_dir(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A worker's own, empty."""
    own = settings.model_copy(update={"state_dir": tmp_path / "state"})
    for module in ("pipelines.settings", "pipelines.models", "pipelines.training.finetune"):
        monkeypatch.setattr(f"{module}.get_settings", lambda: own)
    monkeypatch.setattr(brushnet, "show", lambda *args: None)
    monkeypatch.setattr(finetune, "SHOTS", 4)
    load_profile.cache_clear()
    yield tmp_path / "state"
    load_profile.cache_clear()


@pytest.fixture
def published(ledger, store) -> None:
    """Five products with published images."""
    shots = [
        Shot(Product(sku, n, f"Lamp {n}", "Home", sha256_hex(sku.encode())), "oak-window", "web")
        for n, sku in enumerate(SKUS)
    ]
    ledger.start_run("made", "catalog_refresh", "oak-window", "web")
    ledger.upsert_products([shot.product for shot in shots])
    ledger.select("made", shots, 8)
    for n, shot in enumerate(shots):
        rgba = np.zeros((80, 60, 4), np.uint8)
        rgba[20:70, 10:50] = [50 * n, 200, 90, 255]
        cutout = store.put(png_bytes(Image.fromarray(rgba, "RGBA")), "image/png")
        used = []
        for stage, role, digest in (
            ("cutout", "cutout", cutout),
            ("publish", "published", sha256_hex(shot.sku.encode())),
        ):
            job = Job(stage, 1, {}, {"sku": shot.sku})
            step = Step(job.key, job, State.DONE, (Artifact(digest, role, "image/png", 1),))
            used.append(ShotStep(ledger.record(step), reused=False))
        ledger.use("made", [(shot, used)])
    ledger.publish("made", [Publication(s.sku, "oak-window", "web", sha256_hex(s.sku.encode())) for s in shots])


@pytest.fixture
def tuning(context: dict[str, Any]) -> dict[str, Any]:
    return context | {"dag": SimpleNamespace(dag_id="brushnet_finetune"), "run_id": "by hand"}


def gathering(**changed: Any) -> GatherPicturesOperator:
    asked = {"source": "ledger", "folder": "", "salient_folder": "", "scenes": "[]", "categories": "[]"}
    return GatherPicturesOperator(task_id="gather", **(asked | BUDGET | changed))


@pytest.mark.slow
def test_from_the_shops_cutouts_to_a_revision_that_a_person_may_promote(
    published, ledger, store, state_dir, tuning, tmp_path
):
    pictures = gathering(categories='["home"]').execute(tuning)
    assert [p.product for p in Dataset.load(store, pictures["instance"]).pictures] == sorted(SKUS)

    skipped = TrainStageOperator(
        task_id="s", stage="salient", pictures=pictures, evaluate_minutes="0", **BUDGET, **EXAM
    )
    assert skipped.execute(tuning) == {}
    instance = TrainStageOperator(
        task_id="i", stage="instance", pictures=pictures, before={}, evaluate_minutes="0", **BUDGET, **EXAM
    )
    trained = instance.execute(tuning)
    assert (trained["figures"]["products"], trained["figures"]["steps"]) == (3, 1)

    # the next task runs on another worker: nothing but the store and the ledger in common
    (state_dir / "finetune").rename(tmp_path / "elsewhere")
    register = RegisterRevisionOperator(task_id="r", pictures=pictures, salient={}, instance=trained, **BUDGET, **EXAM)
    told = register.execute(tuning)
    [made] = revisions(ledger.engine, "mini", "brushnet")
    assert (told["revision"], told["promoted"]) == (made.revision, False)
    assert made.data == pictures["instance"]
    assert made.by == "brushnet_finetune by hand"
    assert made.stages["instance"]["pictures"] == trained["figures"]["pictures"]
    assert {score.product for score in made.evaluation.scores} == set(SKUS[:2])
    assert "frozen_set.png" in made.files

    # two products cannot show that it is better
    promotion = PromoteRevisionOperator(task_id="p", revision=told, wanted="True")
    refused = promotion.execute(tuning)
    assert refused["promoted"] is False
    assert "2 products" in refused["reason"]
    assert PromoteRevisionOperator(task_id="p", revision=told, wanted="False").execute(tuning)["promoted"] is False
    promote(ledger.engine, load_profile("mini"), "brushnet", made.revision, "ada", force=True)
    assert promotion.execute(tuning) == {"promoted": True, "reason": "it was already"}
    assert load_profile("mini").ref("brushnet").sha256 == made.sha256


def test_what_is_asked_wrongly_fails_at_once(ledger, store, state_dir, tuning, tmp_path):
    with pytest.raises(UsageError, match="name the folder"):
        gathering(source="folder").execute(tuning)
    with pytest.raises(UsageError, match="not there"):
        gathering(source="folder", folder=str(tmp_path / "nowhere")).execute(tuning)
    with pytest.raises(UsageError, match="minutes or steps"):
        gathering(minutes="0", steps="").execute(tuning)
