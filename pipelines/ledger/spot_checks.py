"""Spot checks: how often an image that passed every check is wrong all the same.

When a run ends, some of the images that it published are drawn, and a person says whether each is right. Which ones is
decided by a hash of the run's id and of the image, so the same run always draws the same. The answers are decisions
(`pipelines.ledger.decisions`): `confirm` for a right image, `reject` for a wrong one, which is withdrawn.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text


@dataclass(frozen=True, slots=True)
class FalsePasses:
    """Answered spot checks of a scene: how many images were wrong, of how many. `rate` is their share, and `low` to
    `high` its 95 % Wilson interval."""

    scene: str
    wrong: int
    checked: int
    rate: float
    low: float
    high: float


def draw(engine: Engine, run: str, count: int) -> list[str]:
    """Draws up to `count` images of those that `run` published because all checks passed; returns their sha256.

    A run that ends again keeps what it drew. An image that was drawn or decided before is not drawn.
    """
    with engine.begin() as connection:
        return list(connection.scalars(text(_DRAW), {"run": run, "count": count}))


def false_passes(connection: Connection) -> list[FalsePasses]:
    """Wrong images among the spot checks that were answered in the last 90 days, by scene."""
    rows = connection.execute(text("SELECT * FROM false_passes_by_scene ORDER BY scene"))
    return [FalsePasses(*row) for row in rows]


# an image is passed if it has verdicts, and each of them passed
_DRAW = """
INSERT INTO spot_checks (final, run, shot)
SELECT rs.final, rs.run, rs.shot
FROM run_shots rs
WHERE rs.run = :run AND rs.state = 'published' AND rs.final IS NOT NULL AND rs.checks = '{}'
  AND NOT EXISTS (SELECT FROM decisions d WHERE d.final = rs.final)
  AND NOT EXISTS (SELECT FROM spot_checks c WHERE c.final = rs.final)
ORDER BY md5(rs.run || '/' || rs.final)
LIMIT greatest(0, :count - (SELECT count(*) FROM spot_checks c WHERE c.run = :run))
ON CONFLICT DO NOTHING
RETURNING final
"""
