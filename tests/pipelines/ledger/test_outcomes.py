"""One rule of what becomes of a shot: the ledger in Postgres and a run in memory agree on it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipelines.contracts import (
    STAGES,
    Artifact,
    Job,
    Product,
    Publication,
    Shot,
    ShotState,
    ShotStep,
    State,
    Step,
    Verdict,
    sha256_hex,
)
from pipelines.ledger.outcomes import outcome_of
from pipelines.ledger.postgres import PostgresLedger
from pipelines.ledger.reports import report

RUNS = count()


@dataclass(frozen=True)
class Walk:
    """How far a shot came: stages that are done, how the next one ended, and the checks of those that are done."""

    done: int
    end: State | None
    reason: str
    checks: dict[str, tuple[tuple[bool, str], ...]]

    def steps(self, sku: str) -> list[Step]:
        """Its chosen steps, in the workflow's order. As both runners do, nothing is published that failed a check."""
        made: list[Step] = []
        for stage in STAGES[: self.done]:
            if stage == "publish" and any(not verdict.passed for step in made for verdict in step.verdicts):
                break
            job = Job(stage, 1, {}, {"sku": sku})
            verdicts = tuple(
                Verdict(f"check {n}", 0.5, 0.5, passed, reason)
                for n, (passed, reason) in enumerate(self.checks.get(stage, ()))
            )
            role = "published" if stage == "publish" else stage
            output = Artifact(sha256_hex(f"{sku} {stage}".encode()), role, "image/png", 1)
            made.append(Step(job.key, job, State.DONE, (output,), verdicts=verdicts))
        else:
            if self.end is not None and self.done < len(STAGES):
                job = Job(STAGES[self.done], 1, {}, {"sku": sku})
                made.append(Step(job.key, job, self.end, reason=self.reason))
        return made


words = st.text("abc; ü", max_size=5)
checks = st.lists(st.tuples(st.booleans(), words), max_size=3).map(tuple)
walks = st.builds(
    Walk,
    st.integers(0, len(STAGES)) | st.just(5),
    st.sampled_from([None, State.REJECTED, State.FAILED]),
    words,
    st.fixed_dictionaries(dict.fromkeys(("cutout", "generate", "inspect"), checks)),
)
TWO_STAGES_FAIL = Walk(5, None, "", {"cutout": ((True, ""), (False, "b")), "generate": ((False, "a"),)})


@given(st.lists(walks, min_size=1, max_size=8))
@example([TWO_STAGES_FAIL])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_run_in_memory_and_the_ledger_say_the_same_of_every_shot(ledger: PostgresLedger, shots: list[Walk]):
    run = f"outcomes {next(RUNS)}"
    made = [Shot(Product(f"{run} {n}", n, "Cup", "", None), "studio", "web") for n in range(len(shots))]
    steps = {shot.sku: walk.steps(shot.sku) for shot, walk in zip(made, shots, strict=True)}
    ledger.start_run(run, "catalog_refresh", "studio", "web")
    ledger.upsert_products([shot.product for shot in made])
    ledger.select(run, made, 8)
    uses = [(shot, [ShotStep(ledger.record(step), reused=False) for step in steps[shot.sku]]) for shot in made]
    ledger.use(run, uses)
    published = [step for walk in steps.values() for step in walk if step.job.stage == "publish" and step.outputs]
    ledger.publish(run, [Publication(s.job.parameters["sku"], "studio", "web", s.outputs[0].sha256) for s in published])
    ledger.settle(run)
    settled = {shot.sku: (shot.state, shot.reason) for shot in report(ledger.engine, run).shots}
    assert settled == {sku: outcome_of({step.job.stage: step for step in walk}) for sku, walk in steps.items()}


@pytest.mark.parametrize("end", [State.REJECTED, State.FAILED])
def test_a_bad_end_counts_before_a_failed_check(end: State):
    walk = Walk(2, end, "it broke", {"cutout": ((False, "too small"),)})
    assert outcome_of({step.job.stage: step for step in walk.steps("a")}) == (ShotState(end), "it broke")
