"""The tables of a run that are checked before anything is published, as columns, and the images that may be shown.

They cover the shots that the run looked at. What stands as an earlier run left it was checked there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, text

Columns = dict[str, list[Any]]
"""Column → its values, one a row. A run of 100 000 shots has a million verdicts: no object a row."""


def catalogue(connection: Connection, run: str) -> Columns:
    """The products as they were read."""
    return _columns(connection, _CATALOGUE, run)


def scores(connection: Connection, run: str) -> Columns:
    """Every verdict on a chosen step, one row a verdict."""
    return _columns(connection, _SCORES, run)


def publication(
    connection: Connection, run: str, common: Mapping[str, Any], finals: Sequence[str] | None = None
) -> Columns:
    """The set about to be published, one row an image; `common` are columns with one value for all. With `finals`, only
    the images that were made of those (sha256).

    `approval` is `approved` if a person approved the image, `passed` if all its verdicts passed, and null if it has no
    verdict, or if the verdicts are about another image.
    """
    some = None if finals is None else list(finals)
    columns = _columns(connection, _PUBLICATION.format(judged=_JUDGED), run, finals=some)
    return columns | {name: [value] * len(columns["key"]) for name, value in common.items()}


def publishable(connection: Connection, run: str) -> list[int]:
    """Positions of the shots whose image may be shown and is not encoded yet. It was approved, or neither a verdict nor
    a person is against it."""
    return list(connection.scalars(text(_PUBLISHABLE.format(judged=_JUDGED)), {"run": run}))


def to_ask_for(connection: Connection, run: str, sample: int) -> list[str]:
    """Digests of the run's images that it found encoded, and of `sample` images that stand as an earlier run left
    them: whether the store still has them is not known."""
    return list(connection.scalars(text(_TO_ASK_FOR), {"run": run, "sample": sample}))


def shows_additional(engine: Engine, run: str) -> bool:
    """Whether the run has shots of additional photos."""
    with engine.connect() as connection:
        return bool(connection.scalar(text(_SHOWS_ADDITIONAL), {"run": run}))


def shown(engine: Engine, run: str) -> Iterator[tuple[str, str, str, str]]:
    """SKU, title, digest and `photo_of` of every published image of a run, unchanged ones too, in the feed's order:
    those of one product follow one another. What was taken back is not among them."""
    with engine.connect() as connection:
        found = connection.execution_options(yield_per=5000).execute(text(_SHOWN), {"run": run})
        for row in found:
            yield row.sku, row.title, row.digest, row.photo_of


def _columns(connection: Connection, statement: str, run: str, **values: Any) -> Columns:
    found = connection.execute(text(statement), {"run": run, **values})
    names = list(found.keys())
    columns: list[list[Any]] = [[] for _ in names]
    for row in found:
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    return dict(zip(names, columns, strict=True))


_CATALOGUE = """
SELECT v.sku, rs.row AS row_number, v.title, v.category, v.photo, v.photo_problem
FROM run_shots rs JOIN product_versions v ON v.id = rs.version
WHERE rs.run = :run ORDER BY rs.position
"""

_SCORES = """
SELECT s.sku, v."check", v.score, v.threshold, v.passed
FROM run_steps u JOIN shots s ON s.id = u.shot JOIN verdicts v ON v.key = u.key
WHERE u.run = :run AND u.chosen ORDER BY u.shot, u.stage, v.position
"""

# Of every shot with a finished inspection, unless a person rejected its image: the image, whether it was approved, and
# whether all verdicts passed. An image has one decision at most that was not undone.
_JUDGED = """
SELECT rs.position, rs.shot, i.digest AS final, verdicts.passed,
       coalesce(d.choice = 'approve', false) AS approved
FROM run_shots rs
JOIN run_steps u ON u.run = rs.run AND u.shot = rs.shot AND u.stage = 'inspect' AND u.chosen
JOIN steps st ON st.key = u.key AND st.state = 'done'
LEFT JOIN step_inputs i ON i.key = u.key AND i.role = 'final'
LEFT JOIN decisions d ON d.final = i.digest AND d.undone_at IS NULL
LEFT JOIN (
    SELECT u.shot, bool_and(v.passed) AS passed FROM run_steps u JOIN verdicts v ON v.key = u.key
    WHERE u.run = :run AND u.chosen GROUP BY u.shot
) verdicts ON verdicts.shot = rs.shot
WHERE rs.run = :run
  AND d.choice IS DISTINCT FROM 'reject'
"""

_PUBLISHABLE = """
WITH judged AS ({judged})
SELECT judged.position FROM judged
WHERE (judged.approved OR judged.passed IS NOT FALSE) AND NOT EXISTS (
    SELECT FROM run_steps u JOIN steps st ON st.key = u.key AND st.state = 'done'
    JOIN step_inputs i ON i.key = u.key AND i.role = 'final' AND i.digest = judged.final
    WHERE u.run = :run AND u.shot = judged.shot AND u.stage = 'publish' AND u.chosen
      AND NOT EXISTS (SELECT FROM lost_steps WHERE lost_steps.key = u.key)
)
ORDER BY judged.position
"""

# An image that this run encoded was put into the store just now.
_TO_ASK_FOR = """
SELECT o.digest FROM run_steps u JOIN step_outputs o ON o.key = u.key AND o.role = 'published'
WHERE u.run = :run AND u.stage = 'publish' AND u.chosen AND u.reused
UNION
SELECT o.digest
FROM (SELECT made_by, shot FROM shots_of_runs
      WHERE run = :run AND made_by <> :run AND state = 'published' ORDER BY random() LIMIT :sample) drawn
JOIN run_steps u ON u.run = drawn.made_by AND u.shot = drawn.shot AND u.stage = 'publish' AND u.chosen
JOIN step_outputs o ON o.key = u.key AND o.role = 'published'
"""

# the verdicts speak for the very image that was inspected, and for no other
_PUBLICATION = """
WITH judged AS ({judged})
SELECT s.sku || '/' || s.scene || '/' || s.channel AS key, s.sku, o.digest,
       CAST(ps.facts ->> 'width' AS int) AS width, CAST(ps.facts ->> 'height' AS int) AS height,
       CASE WHEN judged.final IS DISTINCT FROM p.digest THEN NULL
            WHEN judged.approved THEN 'approved'
            WHEN judged.passed THEN 'passed' END AS approval
FROM judged
JOIN shots s ON s.id = judged.shot
JOIN run_steps u ON u.run = :run AND u.shot = judged.shot AND u.stage = 'publish' AND u.chosen
JOIN steps ps ON ps.key = u.key AND ps.state = 'done'
LEFT JOIN step_outputs o ON o.key = u.key AND o.role = 'published'
LEFT JOIN step_inputs p ON p.key = u.key AND p.role = 'final'
WHERE (judged.approved OR judged.passed IS NOT FALSE)
  AND (CAST(:finals AS text[]) IS NULL OR judged.final = ANY(CAST(:finals AS text[])))
ORDER BY judged.position
"""

_SHOWS_ADDITIONAL = """
SELECT EXISTS (SELECT FROM product_versions WHERE photo_of <> '') AND EXISTS (
    SELECT FROM shots_of_runs a JOIN product_versions v ON v.id = a.version WHERE a.run = :run AND v.photo_of <> '')
"""

_SHOWN = """
SELECT s.sku, v.title, o.digest, v.photo_of
FROM shots_of_runs all_of
JOIN shots s ON s.id = all_of.shot
JOIN product_versions v ON v.id = all_of.version
JOIN run_steps u ON u.run = all_of.made_by AND u.shot = all_of.shot AND u.stage = 'publish' AND u.chosen
JOIN step_outputs o ON o.key = u.key AND o.role = 'published'
WHERE all_of.run = :run AND all_of.state = 'published'
  AND NOT EXISTS (
    SELECT FROM publications gone
    WHERE gone.shot = all_of.shot AND gone.digest = o.digest AND gone.withdrawn_by IS NOT NULL
      AND NOT EXISTS (SELECT FROM publications again WHERE again.shot = gone.shot AND again.digest = gone.digest
                      AND again.id > gone.id))
ORDER BY all_of.row, CASE WHEN v.photo_of <> '' THEN v.photo_of ELSE v.sku END, v.photo_number, all_of.position
"""
