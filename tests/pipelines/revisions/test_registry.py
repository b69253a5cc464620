"""Revisions of a model: only a better one is promoted, a person may decide otherwise, and there is a way back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sqlalchemy import text
from typer.testing import CliRunner

from pipelines.cli.main import app
from pipelines.contracts import Artifact, Job, Product, Shot, State, Step
from pipelines.diffusion.inpainting import InpaintingPipeline
from pipelines.errors import IntegrityError, UsageError
from pipelines.models.profile import Profile, load_profile, promoted_file, revision_folder, verify
from pipelines.revisions.comparison import Evaluation, Score
from pipelines.revisions.registry import Revision, install, promote, register, revisions, rollback
from pipelines.scenes import load_scene
from pipelines.stages.keys import generate_job
from pipelines.workflow import Recipe

BUNDLED = load_profile("mini", promoted=False)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def evaluation(e_plus: float, products: int = 10) -> Evaluation:
    return Evaluation(0.03, tuple(Score(f"p{n}", s, e_plus + n / 1000) for n in range(products) for s in range(2)))


@pytest.fixture
def state_dir(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ledger, damage) -> Iterator[Path]:
    """A machine that nothing was installed on, and no revision in the ledger."""
    from pipelines.settings import get_settings

    kept = settings.model_copy(update={"state_dir": tmp_path / "state"})
    for module in ("pipelines.models.profile", "pipelines.settings"):
        monkeypatch.setattr(f"{module}.get_settings", lambda: kept)
    get_settings.cache_clear()
    damage("TRUNCATE model_promotions, model_revisions")
    load_profile.cache_clear()
    yield tmp_path / "state"
    load_profile.cache_clear()


@pytest.fixture
def trained(tmp_path: Path):
    """Exports a BrushNet that differs from the bundled one by a little."""

    def export(by: float) -> Path:
        folder = tmp_path / f"export{by}"
        shutil.copytree(BUNDLED.part("brushnet").path, folder)
        weights = load_file(folder / WEIGHTS)
        save_file({name: tensor + by for name, tensor in weights.items()}, folder / WEIGHTS)
        return folder

    return export


def registered(ledger, store, folder: Path, e_plus: float = 0.01, parent: float = 0.2, **more) -> Revision:
    return register(
        ledger.engine, store, load_profile("mini"), "brushnet", folder,
        data="d" * 64, stages={"instance": {"pictures": 7}}, evaluation=evaluation(e_plus, **more),
        baseline=evaluation(parent, **more), by="ada",
    )  # fmt: skip


def key_of_generate(profile: Profile) -> str:
    """Key of the scene's first candidate."""
    product = Product("sku", 1, "Kettle", "Kitchen", "a" * 64)
    job = Job("cutout", 1, {}, {})
    upstream = {
        "cutout": Step(job.key, job, State.DONE, (Artifact("c" * 64, "cutout", "image/png", 1),)),
        "describe": Step("d" * 64, job, State.DONE, facts={"subject": "kettle"}),
    }
    scene = load_scene("oak-window")
    return generate_job(Shot(product, scene.name, scene.channel.name), upstream, Recipe(profile, scene), 0).key


def test_a_promoted_revision_is_what_the_profile_loads_and_what_keys_say(ledger, store, state_dir, trained):
    before = load_profile("mini")
    made = registered(ledger, store, trained(0.25))
    assert not made.promoted
    assert made.parent == before.ref("brushnet").sha256
    assert install(ledger.engine, store, "mini", state_dir) == {}
    assert load_profile("mini").ref("brushnet") == before.ref("brushnet")

    promote(ledger.engine, before, "brushnet", made.revision, by="ada")
    assert install(ledger.engine, store, "mini", state_dir) == {"brushnet": made.sha256}
    after = load_profile("mini")
    assert after.ref("brushnet").sha256 == made.sha256
    assert after.ref("unet") == before.ref("unet")
    assert key_of_generate(after) != key_of_generate(before)
    assert [check.problem for check in verify(after)] == [""] * len(after.parts)
    weight = InpaintingPipeline.from_profile("mini").brushnet.conv_in_condition.weight  # by name, as `generate` does
    own = load_file(BUNDLED.part("brushnet").path / WEIGHTS)["conv_in_condition.weight"].float()
    assert torch.allclose(weight, own + 0.25, atol=1e-2)

    assert rollback(ledger.engine, after, "brushnet", by="bob") == BUNDLED.ref("brushnet").revision
    install(ledger.engine, store, "mini", state_dir)
    assert key_of_generate(load_profile("mini")) == key_of_generate(before)
    with pytest.raises(UsageError, match="nothing to roll back"):
        rollback(ledger.engine, after, "brushnet", by="bob")


def test_rolling_back_walks_back_promotion_by_promotion(ledger, store, state_dir, trained):
    first = registered(ledger, store, trained(0.1))
    promote(ledger.engine, load_profile("mini"), "brushnet", first.revision, by="ada")
    install(ledger.engine, store, "mini", state_dir)
    second = registered(ledger, store, trained(0.2), e_plus=0.001, parent=0.1)
    assert second.parent == first.sha256
    promote(ledger.engine, load_profile("mini"), "brushnet", second.revision, by="ada")
    assert [(one.revision, one.promoted) for one in revisions(ledger.engine, "mini", "brushnet")] == [
        (second.revision, True),
        (first.revision, False),
    ]
    assert rollback(ledger.engine, load_profile("mini"), "brushnet", by="ada") == first.revision
    assert rollback(ledger.engine, load_profile("mini"), "brushnet", by="ada") == BUNDLED.ref("brushnet").revision


@pytest.mark.parametrize(
    ("figures", "why"),
    [
        ({"e_plus": 0.2, "parent": 0.01}, "not better beyond chance"),
        ({"e_plus": 0.1, "parent": 0.1}, "not better beyond chance"),
        ({"e_plus": 0.0, "parent": 0.9, "products": 5}, "not better beyond chance .* 5 products"),
    ],
)
def test_what_is_not_better_is_refused_with_its_figures_unless_a_person_decides(
    ledger, store, state_dir, trained, figures, why
):
    made = registered(ledger, store, trained(0.3), **figures)
    with pytest.raises(UsageError, match=f"(?s){why}.*--force"):
        promote(ledger.engine, BUNDLED, "brushnet", made.revision, by="ada")
    assert install(ledger.engine, store, "mini", state_dir) == {}
    promote(ledger.engine, BUNDLED, "brushnet", made.revision, by="eve", force=True)
    with ledger.engine.connect() as connection:
        [(by, forced, reason)] = connection.execute(text("SELECT by, forced, reason FROM model_promotions"))
    assert (by, forced) == ("eve", True)
    assert "not better" in reason
    with pytest.raises(UsageError, match="promoted already"):
        promote(ledger.engine, BUNDLED, "brushnet", made.revision, by="eve", force=True)


def test_one_that_was_compared_with_others_than_are_in_use_is_refused(ledger, store, state_dir, trained):
    one, other = registered(ledger, store, trained(0.1)), registered(ledger, store, trained(0.2))
    promote(ledger.engine, BUNDLED, "brushnet", one.revision, by="ada")
    with pytest.raises(UsageError, match=f"compared with {BUNDLED.ref('brushnet').revision}, but {one.revision}"):
        promote(ledger.engine, BUNDLED, "brushnet", other.revision, by="ada")


def test_a_revision_that_is_not_there_or_not_told_apart_is_a_usage_error(ledger, store, state_dir, trained):
    with pytest.raises(UsageError, match="no revision of brushnet called 'abc'"):
        promote(ledger.engine, BUNDLED, "brushnet", "abc", by="ada")
    registered(ledger, store, trained(0.1)), registered(ledger, store, trained(0.2))
    with pytest.raises(UsageError, match="2 revisions of brushnet begin with ''"):
        promote(ledger.engine, BUNDLED, "brushnet", "", by="ada")


def test_another_machine_gets_the_files_from_the_store_and_mends_its_own(ledger, store, state_dir, trained):
    made = registered(ledger, store, trained(0.1))
    promote(ledger.engine, BUNDLED, "brushnet", made.revision, by="ada")
    install(ledger.engine, store, "mini", state_dir)
    folder = revision_folder(state_dir, "mini", "brushnet", made.sha256)
    (folder / WEIGHTS).unlink()
    install(ledger.engine, store, "mini", state_dir)
    load_profile("mini").part("brushnet").check()
    (folder / WEIGHTS).write_bytes(b"something else")
    with pytest.raises(IntegrityError):
        load_profile("mini").part("brushnet").check()
    assert promoted_file(state_dir, "mini").is_file()
    assert sorted(path.name for path in folder.parent.iterdir()) == [made.revision], "nothing half-made is left"


@pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors.index.json"])
def test_a_promoted_folder_is_loaded_with_the_configuration_that_was_registered(
    ledger, store, state_dir, trained, name
):
    made = registered(ledger, store, trained(0.1))
    promote(ledger.engine, BUNDLED, "brushnet", made.revision, by="ada")
    install(ledger.engine, store, "mini", state_dir)
    folder = revision_folder(state_dir, "mini", "brushnet", made.sha256)
    load_profile("mini").part("brushnet").check()
    (folder / name).write_text("{}")
    with pytest.raises(IntegrityError, match=name):
        load_profile("mini").part("brushnet").check()
    if name == "config.json":
        install(ledger.engine, store, "mini", state_dir)
        load_profile("mini").part("brushnet").check()


def test_what_an_earlier_version_wrote_of_promotions_is_named_with_the_remedy(state_dir):
    promoted_file(state_dir, "mini").parent.mkdir(parents=True)
    promoted_file(state_dir, "mini").write_text('{"brushnet":"' + "a" * 64 + '"}')
    with pytest.raises(UsageError, match=r"mini\.json: written by an earlier version; delete it"):
        load_profile("mini")


def test_the_same_weights_are_one_revision(ledger, store, state_dir, trained):
    folder = trained(0.1)
    assert registered(ledger, store, folder).created_at == registered(ledger, store, folder, e_plus=0.1).created_at
    with pytest.raises(UsageError, match="safetensors"):
        registered(ledger, store, folder.parent)


def test_the_command_lists_promotes_and_rolls_back(ledger, store, state_dir, trained, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    made = registered(ledger, store, trained(0.1))

    def told(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["models", *arguments])
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    assert made.revision in told("revisions")
    assert "better" in told("revisions", "brushnet")
    assert made.revision in told("promote", "brushnet", made.revision)
    [listed] = json.loads(told("revisions", "--json"))
    assert listed["promoted"]
    assert listed["figures"]["n"] == 20
    assert listed["gain_interval"][0] > 0
    assert [row["revision"] for row in json.loads(told("list", "--json")) if row["name"] == "brushnet"] == [
        made.revision
    ]
    assert json.loads(told("rollback", "brushnet", "--json"))["revision"] == BUNDLED.ref("brushnet").revision
