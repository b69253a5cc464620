"""Validate tables: the catalogue as read, the scores of a run, the set to publish, a channel's feed.

The suites are files in Great Expectations' own format, `suites/<table>.json`. Each expectation gives its purpose in
`meta.reason`. Its severity says whether it stops publication. Great Expectations takes seconds to import, so it is
imported where it is used.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, get_args

Table = Literal["catalogue", "scores", "publication", "feed"]


@dataclass(frozen=True, slots=True)
class Failure:
    """One expectation that the table fails. `rows` names the failing rows, without duplicates, by the suite's naming
    columns; it is empty if the table as a whole fails."""

    expectation: str
    column: str
    severity: Literal["critical", "warning", "info"]
    reason: str
    rows: tuple[str, ...]

    @property
    def critical(self) -> bool:
        """Whether it stops the run's publication."""
        return self.severity == "critical"


@dataclass(frozen=True, slots=True)
class TableResult:
    """Result of a validation. `success`: nothing critical failed. `document`: Great Expectations' whole result as JSON,
    to be stored with the run."""

    success: bool
    failures: tuple[Failure, ...]
    document: Mapping[str, Any]


def load_suite(table: Table) -> dict[str, Any]:
    """Read the suite of a table. Raises ValueError if there is none."""
    if table not in get_args(Table):
        raise ValueError(f"no suite for table {table!r}: there are {', '.join(get_args(Table))}")
    file = resources.files("pipelines.quality") / "suites" / f"{table}.json"
    return json.loads(file.read_text(encoding="utf-8"))


def validate(table: Table, rows: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]) -> TableResult:
    """Validate rows (column → value), or columns (name → values), with the suite of their table.

    A column that no row has counts as empty. An empty table meets every expectation on its rows.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read at import; no catalogue data leaves the machine
    import great_expectations as gx
    import pandas as pd
    from great_expectations.data_context.types.base import ProgressBarsConfig

    suite = load_suite(table)
    named_by = suite["meta"]["rows_named_by"]
    frame = pd.DataFrame(dict(rows) if isinstance(rows, Mapping) else list(rows))
    for column in suite["meta"]["columns"]:
        if column not in frame:
            frame[column] = None

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("packshot").add_dataframe_asset(table)
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    result = batch.validate(
        gx.ExpectationSuite(**suite),
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": named_by},
    )
    document = _plain(result.to_json_dict())
    failures = tuple(_failure(found, named_by) for found in document["results"] if not found["success"])
    return TableResult(not any(failure.critical for failure in failures), failures, document)


def _failure(found: Mapping[str, Any], named_by: Sequence[str]) -> Failure:
    config = found["expectation_config"]
    kwargs = config["kwargs"]
    columns = [kwargs[name] for name in ("column", "column_A", "column_B") if name in kwargs]
    failing = found["result"].get("unexpected_index_list") or ()
    names = [" ".join(str(row.get(column)) for column in named_by) for row in failing]
    return Failure(
        expectation=config["type"],
        column=", ".join(columns),
        severity=config["severity"],
        reason=config["meta"]["reason"],
        rows=tuple(dict.fromkeys(names)),
    )


def _plain(value: Any) -> Any:
    """Convert to JSON without NumPy's numbers; NaN and infinities become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)
