"""A refresh that is too large for one run goes in waves; none loses a product, and none computes one twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, DagRunTriggerException

from operators.waves import NextWaveOperator
from pipelines.contracts import Job, Made, sha256_hex
from pipelines.errors import UsageError
from pipelines.ledger.decisions import Choice
from pipelines.ledger.endings import end_run, open_runs
from pipelines.ledger.reports import Report, report
from pipelines.ledger.waves import next_wave, wave_before, wave_of
from pipelines.runs import planning
from pipelines.stages import keys
from tests.operators.test_differences import STAGES, Shop, shop  # noqa: F401  # a fixture

NAMES = ("cup", "pot", "grown-vase", "bowl", "jug", "plate", "tray", "lamp")


@pytest.fixture(autouse=True)
def small_waves(monkeypatch) -> None:
    """Shards of one shot, and six of them a run at most: waves of one, four and six shots with one slot."""
    monkeypatch.setattr(planning, "MAX_SHARDS", 6)
    monkeypatch.setattr(planning, "usual_size", lambda rates, fixed=None: 1)


@pytest.fixture
def large(shop: Shop) -> Shop:  # noqa: F811
    shop.feed = {name: name for name in NAMES}
    return shop


def started_by(shop: Shop, found: Report) -> dict[str, Any] | None:  # noqa: F811
    """Id and form of the run that a run's task `next_wave` starts; None where it starts none."""
    task = NextWaveOperator(task_id="next_wave", run=found.run, triggered_by="ada")
    trigger = None
    try:
        task.execute(shop.context)
    except DagRunTriggerException as raised:
        trigger = raised
    if trigger is None:
        return None
    assert trigger.trigger_dag_id == "catalog_refresh"
    assert trigger.skip_when_already_exists, "a cleared task starts no second run"
    return {"run": trigger.dag_run_id, "conf": trigger.conf}


def waves(shop: Shop, found: Report) -> list[Report]:  # noqa: F811
    """This run and the waves after it, each walked to its end."""
    done = [found]
    while following := started_by(shop, done[-1]):
        assert following["conf"] == {"asked": "by a test", "triggered_by": "ada"}, "the same form, and who asked"
        done.append(shop.night(following["run"]))
    return done


def test_every_product_is_made_once_and_the_first_images_are_shown_after_a_small_wave(large: Shop) -> None:
    first, *others = waves(large, large.night())
    assert [first.put_off, *(found.put_off for found in others)] == [7, 3, 0]
    assert large.states(first) == {"cup": "published"}
    assert large.shown(first).keys() == {"cup"}
    assert [found.run for found in others] == [f"{first.run}__wave_2", f"{first.run}__wave_3"]
    last = others[-1]
    assert large.states(last) == {name: "held" if name == "grown-vase" else "published" for name in NAMES}
    assert large.shown(last)["cup"] == large.shown(first)["cup"]
    computed = [found.steps["generate"].computed for found in (first, *others)]
    assert computed == [1, 4, 3]
    large.night()
    assert large.looked_at == 0, "nothing is left"


def test_what_is_put_off_stands_as_it_was_until_its_wave(large: Shop) -> None:
    *_, before = waves(large, large.night())
    large.feed = {name: f"{name}, repainted" for name in NAMES}
    first = large.night()
    assert first.put_off == 7
    assert large.states(first) == large.states(before)
    now, then = large.shown(first), large.shown(before)
    assert now.keys() == then.keys()
    assert {name for name in then if now[name] != then[name]} == {"cup"}
    assert report(large.ledger.engine, first.run).products == 8
    *_, last = waves(large, first)
    assert all(large.shown(last)[name] != then[name] for name in then)


def test_a_decision_about_what_is_put_off_is_not_lost_and_mends_no_other_image(large: Shop) -> None:
    *_, before = waves(large, large.night())
    large.feed = {name: f"{name} in red" for name in NAMES}
    first = large.night()
    large.decide(before, Choice.APPROVE)
    large.finish(first.run)
    shown = large.shown(report(large.ledger.engine, first.run))
    assert "grown-vase" in shown, "the image that was approved"
    *_, last = waves(large, first)
    assert large.states(last)["grown-vase"] == "held", "of the product as it is now there is another image"
    assert last.steps["generate"].computed == 3


def test_what_is_put_off_never_counts_as_made_by_the_new_recipe(large: Shop, monkeypatch) -> None:
    *_, before = waves(large, large.night())
    monkeypatch.setattr(keys, "fingerprint", lambda recipe: sha256_hex(b"another recipe"))
    for name, stage in STAGES.items():
        monkeypatch.setitem(STAGES, name, replace(stage, job=_in_another_look(stage.job)))
    first = large.night()
    large.decide(before, Choice.APPROVE)
    large.finish(first.run)
    done = waves(large, first)
    assert [found.steps["generate"].computed for found in done] == [1, 4, 3]
    now, then = large.shown(done[-1]), large.shown(before)
    assert all(now[name] != then[name] for name in then)
    assert large.states(done[-1])["grown-vase"] == "held"


def test_a_failure_of_before_waits_for_its_wave_and_spoils_none_before_it(large: Shop, monkeypatch) -> None:
    def breaks(*about: Any) -> list[Made]:
        raise RuntimeError("the lamp broke it")

    large.feed = {"lamp": "lamp"}
    with monkeypatch.context() as patch:
        patch.setitem(STAGES, "cutout", replace(STAGES["cutout"], compute=breaks))
        with pytest.raises(AirflowFailException, match="1 of 1 shots failed"):
            large.night()
    large.feed = {name: name for name in NAMES}
    first, *others = waves(large, large.night())
    assert large.states(first) == {"cup": "published"}
    assert large.states(others[-1])["lamp"] == "published"


def _in_another_look(job: Callable[..., Job]) -> Callable[..., Job]:
    def other(*about: Any) -> Job:
        made = job(*about)
        return replace(made, parameters={**made.parameters, "look": "another"})

    return other


def test_a_wave_names_no_feed_and_only_its_own_channel(large: Shop) -> None:
    """A feed that somebody named meanwhile stays the one that a nightly run refreshes."""
    large.context["params"] = {"feed": "https://shop.example/feed.csv", "channels": ["web", "shopify"]}
    following = started_by(large, large.night())
    assert following["conf"] == {"feed": None, "channels": ["web"], "triggered_by": "ada"}


def test_a_wave_that_was_not_started_fails_the_run_whose_images_are_shown(large: Shop) -> None:
    large.context["ti"].states = {"next_channel": "skipped", "next_wave": "failed"}
    with pytest.raises(AirflowFailException, match="7 shots were left to a next wave, and it was not started"):
        large.night("large-night")
    found = report(large.ledger.engine, "large-night")
    assert (found.state, large.states(found)) == ("failed", {"cup": "published"})
    assert "task next_wave failed, see its log; mend it, then clear the task" in found.problem["reason"]
    assert "large-night" in {run.run for run in open_runs(large.ledger.engine)}, "people are notified"

    large.context["ti"].states = {"next_channel": "skipped", "next_wave": "success"}
    large.finish("large-night")  # the task was cleared, and what is downstream
    assert report(large.ledger.engine, "large-night").problem is None


def test_a_wave_after_a_publication_that_failed_waits_for_the_same_remedy(large: Shop) -> None:
    large.context["ti"].states = {"next_wave": "upstream_failed"}
    large.checks = ["publish"]
    large.context["ti"].pushed["problem"] = {"reason": "an image has no address; clear publish", "failures": []}
    with pytest.raises(AirflowFailException, match="clear publish; 7 shots were left to a next wave, and it was not"):
        large.night()


def test_a_later_run_over_the_same_feed_takes_over(large: Shop) -> None:
    first = large.night()
    large.feed["cup"] = "another cup"
    later = large.night()
    assert later.put_off == 7
    assert started_by(large, first) is None
    with pytest.raises(UsageError, match="a later run has read the feed"):
        large.night(next_wave(first.run))
    *_, last = waves(large, later)
    assert large.states(last).keys() == set(NAMES)


def test_what_comes_after_a_cancelled_run_is_not_planned(large: Shop) -> None:
    first = large.night()
    large.ledger.start_run(first.run, "catalog_refresh", first.scene, first.channel)
    assert end_run(large.ledger.engine, first.run, "cancelled", "ada cancelled the run")
    with pytest.raises(UsageError, match="was cancelled, and this one comes after it: start it again"):
        large.night(next_wave(first.run))


def test_a_wave_that_is_planned_again_keeps_what_it_selected(large: Shop) -> None:
    first = large.night()
    second = large.night(next_wave(first.run))
    again = large.night(first.run)
    assert large.looked_at == 0
    assert (again.put_off, large.states(again)) == (7, {"cup": "published"})
    assert large.states(report(large.ledger.engine, second.run)).keys() == set(NAMES[:5])


@pytest.mark.parametrize("reprocess", ["all", "failed"])
def test_what_is_computed_anew_is_one_run(large: Shop, reprocess: str) -> None:
    waves(large, large.night())
    again = large.night(reprocess=reprocess)
    assert again.put_off == 0
    assert large.looked_at == (8 if reprocess == "all" else 1)
    assert started_by(large, again) is None


def test_a_refresh_that_fits_is_one_run(shop: Shop) -> None:  # noqa: F811
    found = shop.night()
    assert found.put_off == 0
    assert shop.looked_at == 3
    assert started_by(shop, found) is None


@pytest.mark.parametrize(
    ("run", "number", "before", "following"),
    [
        ("manual__2026-01-01", 1, "", "manual__2026-01-01__wave_2"),
        ("manual__2026-01-01__wave_2", 2, "manual__2026-01-01", "manual__2026-01-01__wave_3"),
        ("a__wave_10", 10, "a__wave_9", "a__wave_11"),
        ("a__wave_0", 1, "", "a__wave_0__wave_2"),
    ],
)
def test_a_run_is_known_as_a_wave_by_its_id(run: str, number: int, before: str, following: str) -> None:
    assert (wave_of(run), wave_before(run), next_wave(run)) == (number, before, following)


@pytest.mark.parametrize(
    ("wave", "shots", "most"), [(1, 600, 600), (1, 601, 200), (2, 601, 600), (9, 10**6, 600), (1, 0, 0)]
)
def test_waves_grow_up_to_what_a_run_takes(wave: int, shots: int, most: int) -> None:
    assert planning.most_shots(wave, shots, size=100, slots=2) == most
