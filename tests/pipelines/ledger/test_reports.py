"""What became of a run, where an image came from, what a run would cost: asked of a real Postgres."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from sqlalchemy import text

from pipelines.contracts import (
    STAGES,
    Artifact,
    Job,
    Made,
    ModelRef,
    Output,
    Product,
    Publication,
    Shot,
    Verdict,
    sha256_hex,
)
from pipelines.errors import Rejected, UsageError
from pipelines.ledger.postgres import PostgresLedger
from pipelines.ledger.reports import feed_for, latest_run, lineage, list_runs, remember_latest, report
from pipelines.models.profile import load_profile
from pipelines.runs.forecast import Part, forecast
from pipelines.scenes import load_scene
from pipelines.stages.keys import STAGES as REAL_STAGES
from pipelines.store import FolderStore
from pipelines.workflow import Recipe, Stage, run_stage

RECIPE = Recipe(None, None)  # type: ignore[arg-type]  # the stages below read nothing of it
MODEL = ModelRef("net", "r1", sha256_hex(b"net"))


def make_stage(name: str, candidates: int = 1) -> Stage:
    """A stage that stamps its name on its input: `describe` has facts alone, products called bad-… are rejected, and
    those called grown-… do not pass the inspection."""
    before = STAGES[: STAGES.index(name)]

    def job(shot, upstream, recipe, candidate):
        pictures = [s for s in before if s != "describe" and s != "inspect"]
        inputs = {"photo": shot.product.photo}
        if pictures:
            inputs["image"] = upstream[pictures[-1]].output(pictures[-1])
        parameters = {"sku": shot.sku} | ({"scene": shot.scene} if name not in ("cutout", "describe") else {})
        return Job(name, 1, inputs, parameters, (MODEL,), candidate, recipe.attempt)

    def compute(works, models, recipe):
        (work,) = works
        if name == "cutout" and "bad" in work.job.parameters["sku"]:
            return [Rejected("no product in the photo")]
        data = f"{name} {work.job.key}".encode()
        outputs = () if name in ("describe", "inspect") else (Output(name, data, "image/png"),)
        grown = "grown" in work.job.parameters["sku"]
        verdicts = (Verdict("overcompletion", 0.3 if grown else 0.0, 0.05, not grown, "it grew" if grown else ""),)
        return [Made(outputs, {"tag": "mug"}, verdicts if name == "inspect" else ())]

    return Stage(
        name=name,
        version=1,
        needs=before,
        job=job,
        load=lambda recipe: None,
        compute=compute,
        candidates=lambda recipe: candidates,
        passes=lambda step, recipe: candidates == 1 or step.job.seed == candidates - 1,
    )


WALK = [make_stage(name, candidates=2 if name == "generate" else 1) for name in STAGES]


def refresh(
    ledger: PostgresLedger, store: FolderStore, run: str, shots: list[Shot], attempt: str = "", **about: str
) -> None:
    """A whole run, as the DAG does it; forced where it is an attempt."""
    recipe = replace(RECIPE, attempt=attempt)
    ledger.start_run(run, "catalog_refresh", shots[0].scene, "web", **about)  # type: ignore[arg-type]
    ledger.upsert_products([shot.product for shot in shots])
    ledger.select(run, shots, shard_size=2)
    for stage in WALK[:-1]:
        run_stage(stage, run, shots, recipe, ledger, store)
    chosen = ledger.chosen(run, shots)
    passed = [s for s in shots if "inspect" in chosen[s.sku] and chosen[s.sku]["inspect"].verdicts[0].passed]
    run_stage(WALK[-1], run, passed, recipe, ledger, store)
    rows = {sku: steps["publish"].output("publish") for sku, steps in ledger.chosen(run, passed).items()}
    ledger.publish(run, [Publication(sku, shots[0].scene, "web", digest) for sku, digest in rows.items()])
    ledger.finish_run(run, "success")


@pytest.fixture
def folder(tmp_path) -> FolderStore:
    return FolderStore(tmp_path)


@pytest.fixture
def shots(request: pytest.FixtureRequest, folder: FolderStore) -> list[Shot]:
    """A good, a bad and an overcompleted product, named after the test."""

    def shot(row: int, name: str) -> Shot:
        sku = f"{name}-{request.node.name}"
        return Shot(Product(sku, row, "Mug", "Kitchen", folder.put(sku.encode(), "image/png")), "studio", "web")

    return [shot(row, name) for row, name in enumerate(("good", "bad", "grown"), start=1)]


def test_a_report_accounts_for_every_row(ledger, folder, shots, request):
    run = request.node.name
    refresh(ledger, folder, run, shots)
    found = report(ledger.engine, run)
    assert (found.products, found.published, found.held, found.rejected, found.failed, found.pending) == (
        3,
        1,
        1,
        1,
        0,
        0,
    )
    assert [(s.row, s.state, s.reason) for s in found.shots] == [
        (1, "published", ""),
        (2, "rejected", "no product in the photo"),
        (3, "held", "it grew"),
    ]
    assert {s: (c.computed, c.reused) for s, c in found.steps.items()} == {
        "cutout": (3, 0),
        "describe": (2, 0),
        "generate": (4, 0),
        "upscale": (2, 0),
        "inspect": (2, 0),
        "publish": (1, 0),
    }
    document = json.loads(json.dumps(found.to_json()))
    assert document["shots"][1] == {
        "sku": shots[1].sku, "row": 2, "state": "rejected", "reason": "no product in the photo",
        "product": shots[1].sku, "photo_number": 1,
    }  # fmt: skip
    assert document["steps"]["generate"] == {"computed": 4, "reused": 0}
    assert set(document["seconds"]) == set(STAGES)


def test_a_second_run_lists_every_shot_and_computes_nothing(ledger, folder, shots, request):
    refresh(ledger, folder, f"{request.node.name}-1", shots)
    refresh(ledger, folder, f"{request.node.name}-2", shots)
    first, second = (report(ledger.engine, f"{request.node.name}-{n}") for n in (1, 2))
    assert second.shots == first.shots
    assert sum(count.computed for count in second.steps.values()) == 0
    assert {s: c.reused for s, c in second.steps.items()} == {s: c.computed for s, c in first.steps.items()}
    assert sum(second.seconds.values()) == 0


def test_the_image_of_a_forced_run_stays_through_later_runs(ledger, folder, shots, request):
    runs = [f"{request.node.name}-{n}" for n in range(3)]
    for run, attempt in zip(runs, ("", runs[1], ""), strict=True):
        refresh(ledger, folder, run, shots, attempt)
    images = [ledger.chosen(run, shots)[shots[0].sku]["publish"].output("publish") for run in runs]
    assert images[0] != images[1] == images[2]
    shown = lineage(ledger.engine, shots[0].sku)
    assert (shown.artifact, shown.run) == (images[1], runs[1])
    computed = [sum(count.computed for count in report(ledger.engine, run).steps.values()) for run in runs]
    assert computed == [computed[0], computed[0], 0]


class Killed(BaseException):
    """What no `except Exception` holds up: the end of the task's process."""


def test_what_a_killed_task_computed_is_not_reused_by_its_next_try(ledger, folder, shots, request, monkeypatch):
    run = request.node.name

    def kill(*_: object) -> None:
        raise Killed

    ledger.start_run(run, "catalog_refresh", "studio", "web")
    ledger.upsert_products([shot.product for shot in shots])
    ledger.select(run, shots, shard_size=2)
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "use", kill)  # recorded, and killed before it could say for what
        with pytest.raises(Killed):
            run_stage(WALK[0], run, shots, RECIPE, ledger, folder)
    refresh(ledger, folder, run, shots)
    refresh(ledger, folder, f"{run}-2", shots)
    counts = [report(ledger.engine, name).steps["cutout"] for name in (run, f"{run}-2")]
    assert [(count.computed, count.reused) for count in counts] == [(3, 0), (0, 3)]


def test_another_scene_reuses_cutouts_and_descriptions(ledger, folder, shots, request):
    refresh(ledger, folder, f"{request.node.name}-1", shots)
    beach = [replace(shot, scene="beach") for shot in shots]
    refresh(ledger, folder, f"{request.node.name}-2", beach)
    found = report(ledger.engine, f"{request.node.name}-2")
    assert [found.steps[s].computed for s in STAGES] == [0, 0, 4, 2, 2, 1]


def test_a_stopped_publication_names_its_problem(ledger, folder, shots, request):
    run = request.node.name
    refresh(ledger, folder, run, shots[2:])
    problem = {"reason": "publication stopped", "failures": [{"expectation": "unique", "rows": ["a"]}]}
    for data in (b"first try", b"second try"):
        ledger.attach(run, Artifact(sha256_hex(data), "validation/publication", "application/json", len(data)))
    ledger.finish_run(run, "failed", problem)
    found = report(ledger.engine, run).to_json()
    assert found["problem"] == problem
    assert found["documents"] == {"validation/publication": sha256_hex(b"second try")}


def test_latest_is_the_last_run_of_the_command(ledger, tmp_path):
    feed = {"feed": "f" * 64, "limit": None}
    ledger.start_run(
        "latest-1", "catalog_refresh", "studio", "web", triggered_by="packshot run", feed="e" * 64, params=feed
    )
    ledger.start_run("latest-2", "catalog_refresh", "studio", "web", triggered_by="schedule")
    assert latest_run(ledger.engine, tmp_path) == "latest-1"
    assert feed_for(ledger.engine, "latest-2") == "f" * 64
    assert feed_for(ledger.engine, "latest-1") == "e" * 64
    assert [row.run for row in list_runs(ledger.engine, limit=2)] == ["latest-2", "latest-1"]


def test_latest_is_never_the_run_before_the_one_that_was_just_triggered(ledger, tmp_path):
    ledger.start_run("known", "catalog_refresh", "studio", "web", triggered_by="packshot run")
    remember_latest(tmp_path / "state", "just now")
    with pytest.raises(UsageError, match="just now, is not planned yet"):
        latest_run(ledger.engine, tmp_path / "state")
    ledger.start_run("just now", "catalog_refresh", "studio", "web", triggered_by="packshot run")
    ledger.start_run("elsewhere", "catalog_refresh", "studio", "web", triggered_by="packshot run")
    assert latest_run(ledger.engine, tmp_path / "state") == "just now"


def test_an_unknown_run_is_a_usage_error(ledger):
    with pytest.raises(UsageError, match="no run 'nope'"):
        report(ledger.engine, "nope")


def test_lineage_names_photo_steps_models_and_parameters(ledger, folder, shots, request):
    refresh(ledger, folder, request.node.name, shots)
    good = shots[0]
    found = lineage(ledger.engine, good.sku)
    assert found.photo == good.product.photo
    assert found.published_at is not None
    assert [step.stage for step in found.steps] == list(STAGES)
    assert found.steps[-1].outputs["publish"] == found.artifact
    assert found.steps[2].seed == 1, "the candidate that was chosen, not the one passed over"
    for step, later in zip(found.steps[2:4], found.steps[3:5], strict=True):
        assert later.inputs["image"] == step.outputs[step.stage]
    document = json.loads(json.dumps(found.to_json()))
    assert document["artifact"]["sha256"] == found.artifact
    assert document["photo"]["sha256"] == good.product.photo
    assert document["steps"][0]["models"] == [{"name": "net", "revision": "r1", "sha256": MODEL.sha256}]
    assert document["steps"][0]["parameters"] == {"sku": good.sku}
    assert lineage(ledger.engine, found.artifact) == found


def test_every_key_can_be_made_again_from_the_lineage(ledger, folder, shots, request):
    refresh(ledger, folder, request.node.name, shots, attempt=request.node.name)
    for step in lineage(ledger.engine, shots[0].sku).steps:
        job = Job(step.stage, step.version, step.inputs, step.parameters, step.models, step.seed, step.attempt)
        assert job.key == step.key


def test_lineage_of_an_artifact_on_the_way_ends_there(ledger, folder, shots, request):
    refresh(ledger, folder, request.node.name, shots)
    upscaled = lineage(ledger.engine, shots[0].sku).steps[3].outputs["upscale"]
    assert [step.stage for step in lineage(ledger.engine, upscaled).steps] == list(STAGES[:4])


def test_lineage_of_a_candidate_that_was_passed_over(ledger, folder, shots, request):
    refresh(ledger, folder, request.node.name, shots)
    with ledger.engine.connect() as connection:
        digest = connection.scalar(
            text("SELECT digest FROM run_steps JOIN step_outputs USING (key) WHERE run = :run AND NOT chosen LIMIT 1"),
            {"run": request.node.name},
        )
    found = lineage(ledger.engine, digest)
    assert [step.stage for step in found.steps] == list(STAGES[:3])
    assert (found.steps[-1].seed, found.artifact) == (0, digest)


def test_lineage_of_a_held_product_leads_to_its_last_image(ledger, folder, shots, request):
    refresh(ledger, folder, request.node.name, shots)
    found = lineage(ledger.engine, shots[2].sku)
    assert found.published_at is None
    assert found.steps[-1].stage == "upscale"


def test_lineage_keeps_to_the_scene_that_is_asked_for(ledger, folder, shots, request):
    refresh(ledger, folder, f"{request.node.name}-1", shots)
    refresh(ledger, folder, f"{request.node.name}-2", [replace(shot, scene="beach") for shot in shots])
    assert lineage(ledger.engine, shots[0].sku).scene == "beach"
    assert lineage(ledger.engine, shots[0].sku, scene="studio").scene == "studio"


@pytest.mark.parametrize("name", ["nothing", "0" * 64])
def test_lineage_of_nothing_is_a_usage_error(ledger, name):
    with pytest.raises(UsageError, match="nothing was ever made"):
        lineage(ledger.engine, name)


def test_a_forecast_counts_what_is_there_and_prices_the_rest(ledger, folder, shots, request):
    rates = {name: 10.0 for name in STAGES if name != "upscale"}
    nothing = forecast(WALK, [Part(RECIPE, shots)], ledger, rates)
    assert (nothing.shots, nothing.reused, nothing.seconds_expected) == (3, 0, 3 * 5 * 10.0)
    assert nothing.unmeasured == ("upscale",)

    refresh(ledger, folder, request.node.name, shots)
    everything = forecast(WALK, [Part(RECIPE, shots)], ledger, rates)
    used = {s: c.computed for s, c in report(ledger.engine, request.node.name).steps.items()}
    assert everything.reused_by_stage == used
    assert (everything.reused, everything.seconds_expected) == (sum(used.values()), 0.0)

    beach = forecast(WALK, [Part(RECIPE, [replace(shot, scene="beach") for shot in shots])], ledger, rates)
    assert beach.reused_by_stage == {
        "cutout": 3,
        "describe": 2,
        "generate": 0,
        "upscale": 0,
        "inspect": 0,
        "publish": 0,
    }
    assert beach.computed_by_stage["generate"] == 2


@pytest.mark.parametrize("channels", [["google-merchant"], ["google-merchant", "shopify", ""]])
def test_a_forecast_for_several_channels_counts_what_they_share_once(ledger, channels):
    looks = [load_scene("oak-window", channel=name) for name in channels]
    products = [Product(f"NEW-{n}", n, "Mug", "Kitchen", sha256_hex(b"%d" % n)) for n in range(3)]
    parts = [
        Part(Recipe(load_profile("mini", None), look), [Shot(one, look.name, look.channel.name) for one in products])
        for look in looks
    ]
    found = forecast(list(REAL_STAGES.values()), parts, ledger, dict.fromkeys(STAGES, 1.0))
    assert found.shots == 3 * len(channels)
    made = {"cutout": 3, "describe": 3} | dict.fromkeys(STAGES[2:], 3 * len(channels))
    assert found.computed_by_stage == made
    assert found.seconds_expected == sum(made.values())
    assert found.reused == len(STAGES) * 3 * len(channels) - sum(made.values())


def test_the_views_count_shots_seconds_and_overcompletion(ledger, folder, shots, request):
    refresh(ledger, folder, request.node.name, [replace(shot, scene="attic") for shot in shots])

    def rows(query: str) -> list[tuple]:
        with ledger.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    by_state = rows("SELECT state, shots FROM shots_by_state_and_day WHERE scene = 'attic' ORDER BY state")
    assert by_state == [("held", 1), ("published", 1), ("rejected", 1)]
    assert {row[0] for row in rows("SELECT stage FROM seconds_by_stage WHERE steps > 0")} == set(STAGES)
    ((category, images, grown, low, high),) = rows(
        "SELECT category, images, overcompleted, rate_low, rate_high FROM overcompletion_by_scene_and_category"
        " WHERE scene = 'attic'"
    )
    assert (category, images, grown) == ("Kitchen", 2, 1)
    # Wilson's 95 % interval of one in two
    assert low == pytest.approx(0.0945, abs=1e-3)
    assert high == pytest.approx(0.9055, abs=1e-3)
