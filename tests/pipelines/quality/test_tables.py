"""The three suites against clean tables and planted defects."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipelines.quality.tables import TableResult, load_suite, validate

DIGEST = "0123456789abcdef" * 4


def photo_row(number: int, **other: Any) -> dict[str, Any]:
    row = {"sku": f"A{number}", "row_number": number, "title": "Mug", "category": "", "photo": DIGEST}
    return row | {"photo_problem": ""} | other


def score_row(sku: str, **other: Any) -> dict[str, Any]:
    return {"sku": sku, "check": "overcompletion", "score": 0.01, "threshold": 0.05, "passed": True} | other


def image_row(sku: str, **other: Any) -> dict[str, Any]:
    return {
        "key": f"{sku}/studio/web", "sku": sku, "scene": "studio", "channel": "web", "width": 1024, "height": 1024,
        "digest": (sku.encode().hex() * 64)[:64], "min_width": 500, "min_height": 500, "approval": "passed",
    } | other  # fmt: skip


CLEAN = {
    "catalogue": [photo_row(2), photo_row(3), photo_row(4, photo=None, photo_problem="row 4: photo x is not there")],
    "scores": [score_row("a"), score_row("b"), score_row("b", check="halo", score=4, passed=False)],
    "publication": [image_row("a"), image_row("b", approval="approved"), image_row("c", width=500, height=500)],
}


def failed(result: TableResult, critical: bool = True) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(f.expectation, f.column, f.rows) for f in result.failures if f.critical is critical]


@pytest.mark.parametrize("table", CLEAN)
def test_a_clean_table_passes_and_its_document_is_json(table):
    result = validate(table, CLEAN[table])
    assert result.success
    assert result.failures == ()
    assert len(json.loads(json.dumps(result.document, allow_nan=False))["results"]) == len(
        load_suite(table)["expectations"]
    )


@pytest.mark.parametrize("table", CLEAN)
def test_an_empty_table_passes(table):
    assert validate(table, []).success


@pytest.mark.parametrize("table", CLEAN)
def test_every_expectation_says_what_it_is_for_and_how_much_it_matters(table):
    for expectation in load_suite(table)["expectations"]:
        assert expectation["meta"]["reason"]
        assert expectation["severity"] in ("critical", "warning")


NOT_NULL, IN_SET = "expect_column_values_to_not_be_null", "expect_column_values_to_be_in_set"
UNIQUE, AT_LEAST = "expect_column_values_to_be_unique", "expect_column_pair_values_a_to_be_greater_than_b"
REGEX = "expect_column_values_to_match_regex"


@pytest.mark.parametrize(
    ("rows", "expectation", "column", "named"),
    [
        ([image_row("a"), image_row("a")], UNIQUE, "key", "a"),
        ([image_row("a"), image_row("b", approval=None)], NOT_NULL, "approval", "b"),
        ([image_row("a", approval="perhaps")], IN_SET, "approval", "a"),
        ([image_row("a"), image_row("b", width=499)], AT_LEAST, "width, min_width", "b"),
        ([image_row("a", height=499)], AT_LEAST, "height, min_height", "a"),
        ([image_row("a", digest=None), image_row("b")], NOT_NULL, "digest", "a"),
        ([image_row("a", digest="latest")], REGEX, "digest", "a"),
    ],
)
def test_a_defective_set_is_stopped_and_the_rows_are_named(rows, expectation, column, named):
    result = validate("publication", rows)
    assert not result.success
    assert failed(result) == [(expectation, column, (f"{named}/studio/web",))]


def test_an_image_without_a_size_is_stopped():
    result = validate("publication", [image_row("a", width=None), image_row("b")])
    assert (NOT_NULL, "width", ("a/studio/web",)) in failed(result)


def test_a_column_that_no_row_has_counts_as_empty():
    rows = [{name: value for name, value in image_row("a").items() if name != "approval"}]
    assert failed(validate("publication", rows)) == [(NOT_NULL, "approval", ("a/studio/web",))]


def test_two_shots_with_one_image_are_a_warning():
    result = validate("publication", [image_row("a", digest=DIGEST), image_row("b", digest=DIGEST)])
    assert result.success
    assert failed(result, critical=False) == [(UNIQUE, "digest", ("a/studio/web", "b/studio/web"))]


@pytest.mark.parametrize("score", [None, float("nan"), float("inf"), -0.1])
def test_a_score_that_is_none_stops_the_run(score):
    result = validate("scores", [score_row("a"), score_row("b", score=score)])
    assert not result.success
    assert {rows for _, _, rows in failed(result)} == {("b overcompletion",)}
    json.dumps(result.document, allow_nan=False)


def test_a_run_that_overcompletes_most_of_its_images_is_a_warning():
    rows = [score_row(sku, score=0.5, passed=False) for sku in "abc"] + [score_row("d")]
    result = validate("scores", rows)
    assert result.success
    ((_, column, named),) = failed(result, critical=False)
    assert (column, named) == ("passed", ("a overcompletion", "b overcompletion", "c overcompletion"))


def test_a_catalogue_with_a_sku_twice_or_a_photo_missing_without_reason_is_stopped():
    result = validate("catalogue", [photo_row(2), photo_row(3, sku="A2"), photo_row(4, photo=None), photo_row(5)])
    assert failed(result) == [
        (UNIQUE, "sku", ("2 A2", "3 A2")),
        (NOT_NULL, "photo", ("4 A4",)),
        ("expect_column_value_lengths_to_be_between", "photo_problem", ("4 A4",)),
    ]


def test_a_catalogue_of_bad_rows_is_a_warning_as_each_of_them_is_reported():
    rows = [photo_row(n, photo=None, title="", photo_problem="no photo") for n in range(2, 6)]
    result = validate("catalogue", rows)
    assert result.success
    assert [f.reason for f in result.failures] == ["half of the photos can be had", "nine of ten products have a title"]


def test_there_is_no_suite_for_other_tables():
    with pytest.raises(ValueError, match="catalogue, scores, publication"):
        validate("orders", [])  # type: ignore[arg-type]
