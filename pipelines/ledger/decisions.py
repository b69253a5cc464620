"""A person overrules the checks, or agrees with them: decisions about images, one row each.

    queue        view `review_queue`: each shot's newest image if it was held or drawn for a spot check, unless it was
                 decided
    decide       approve it, reject it, or have it tried again with another seed
    undo         takes a decision back, and with it what was published for it
    roll_back    takes back images that are shown, whatever their verdicts

A decision names an image by its sha256, so it is about these bytes and no others. The database holds at most one
decision of an image that was not undone: whoever decides second is refused, and learns who was first.

A run that finds a held image unchanged has no row of it: the image is decided, and published, in the run that held it.
Every decision takes back that its shot is settled, so that the next run looks at it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import Connection, Engine, Row, text

from pipelines.errors import UsageError
from pipelines.ledger import outcomes


class Choice(StrEnum):
    """What a person decides about a held image."""

    APPROVE = "approve"
    """It is right: publish it."""
    REJECT = "reject"
    """It is wrong: never publish it."""
    RETRY = "retry"
    """Generate the shot again, with another seed."""
    EDIT = "edit"
    """A person corrected its cutout: make the shot again from that. `PostgresLedger.correct` decides it."""
    CONFIRM = "confirm"
    """Of a published image that was drawn for a spot check: it is right."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision about the image `final` (sha256). `held_for` is what the checks said, `reason` the person's words.

    `batch` is "" unless it was made together with others. `acted_run` is the run that published the image or tries
    again; None until then.
    """

    id: int
    run: str
    sku: str
    scene: str
    channel: str
    final: str
    choice: Choice
    held_for: str
    reason: str
    by: str
    at: datetime
    batch: str
    acted_run: str | None
    undone_by: str | None
    undone_at: datetime | None


class Superseded(UsageError):
    """The shot has a newer image: `final` is its sha256."""

    def __init__(self, message: str, final: str):
        super().__init__(message)
        self.final = final


class AlreadyDecided(UsageError):
    """Somebody decided the image before."""

    def __init__(self, message: str, decision: Decision):
        super().__init__(message)
        self.decision = decision


class SelectionChanged(UsageError):
    """The queue is no longer what a person saw when they decided on a part of it as one."""


@dataclass(frozen=True, slots=True)
class Selection:
    """A part of the queue. An empty field selects all."""

    run: str = ""
    scene: str = ""
    check: str = ""

    def values(self) -> dict[str, str]:
        """The values of `IN_SELECTION`."""
        return {"in_run": self.run, "in_scene": self.scene, "failed": self.check}


IN_SELECTION = """
(CAST(:in_run AS text) = '' OR q.run = :in_run)
  AND (CAST(:in_scene AS text) = '' OR q.scene = :in_scene)
  AND (CAST(:failed AS text) = '' OR CAST(:failed AS text) = ANY(q.checks))
"""
"""The condition that a row `q` of the view `review_queue` belongs to a selection."""

IN_BATCH = f"NOT q.spot AND {IN_SELECTION}"
"""The condition that a batch decides it: spot checks are answered one by one."""


def held_image(engine: Engine, run: str, sku: str) -> str:
    """sha256 of the image of product `sku` that `run` held.

    Raises UsageError for an unknown run, a product that is not in it or that no check held, and one without an image.
    """
    with engine.connect() as connection:
        if connection.scalar(text("SELECT id FROM runs WHERE id = :run"), {"run": run}) is None:
            raise UsageError(f"no run {run!r} in the ledger: `packshot run` and `packshot campaign` print their ids")
        rows = connection.execute(text(_OF_SKU), {"run": run, "sku": sku}).all()
    if not rows:
        raise UsageError(f"run {run} has no product {sku!r}: `packshot report {run}` lists what was not published")
    return _held(rows[0])


def decide(engine: Engine, final: str, choice: Choice, by: str, reason: str = "") -> Decision:
    """Records what `by` decided about the image `final`: one that was held, or one that was drawn for a spot check. A
    published image that is rejected is withdrawn.

    The same decision of the same person again is the decision that is there. Raises UsageError if no run held the
    image, Superseded if its shot has a newer one, AlreadyDecided if somebody decided it before.
    """
    with engine.begin() as connection:
        rows = connection.execute(text(_OF_FINAL), {"final": final}).all()
        if not rows:
            raise UsageError(f"no run has an image {final}")
        row = rows[0]
        if row.newest != final:
            raise Superseded(f"{row.sku} has a newer image than {final[:12]}: look at that one", row.newest)
        if choice is Choice.EDIT:
            raise UsageError("a cutout is corrected in its editor")
        if row.spot and row.state == "published":
            _answers_spot_check(row, choice)
        elif choice is Choice.CONFIRM:
            raise UsageError(f"{row.sku} was not drawn for a spot check")
        else:
            _held(row)
        values = {"final": final, "run": row.run, "shot": row.shot, "choice": choice, "reason": reason, "by": by}
        number = connection.scalar(text(_DECIDE), values)
        if number is not None:
            if row.state == "published" and choice is Choice.REJECT:
                _take_back(connection, [row.shot], [final], by)
            outcomes.unsettle_images(connection, [final])
            return _read(connection, "d.id = :id", {"id": number})[0]
        standing = _read(connection, "d.final = :final AND d.undone_at IS NULL", {"final": final})
    if not standing:
        raise UsageError(f"somebody undid a decision about {row.sku} at this moment: decide again")
    (there,) = standing
    if (there.choice, there.by, there.reason) == (choice, by, reason):
        return there
    raise AlreadyDecided(
        f"{there.by} decided it before: {there.choice} ({there.sku}, {there.at:%Y-%m-%d %H:%M})", there
    )


def decide_selection(
    engine: Engine, selection: Selection, fingerprint: str, choice: Choice, by: str, batch: str, reason: str = ""
) -> int:
    """Records one decision about every image of a part of the queue; returns how many it decided.

    `fingerprint` is the selection's as `counted` returns it; `batch` names the decisions, so that `undo_batch` takes
    them back as one. Raises SelectionChanged if the part of the queue is another one meanwhile.
    """
    with engine.begin() as connection:
        # whoever decides a selection waits for the others who do; single decisions show in the fingerprint
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('packshot batch', 0))"))
        now = _count(connection, selection)
        if now.fingerprint != fingerprint:
            raise SelectionChanged(f"the queue changed meanwhile: the selection has {now.count} images now")
        values = {**selection.values(), "choice": choice, "by": by, "reason": reason, "batch": batch}
        decided = connection.scalars(text(_DECIDE_ALL), values).all()
        outcomes.unsettle_images(connection, decided)
    return len(decided)


def send_back_edited(
    connection: Connection, bases: Sequence[str], final: str, by: str, reason: str, batch: str
) -> list[str]:
    """Decides that the held image `final` is made again from a cutout that a person drew, and so is every other held
    image whose cutout has one of these bases. Returns the sha256 of these images.

    Raises UsageError, Superseded and AlreadyDecided as `decide` does.
    """
    row = connection.execute(text(_OF_FINAL), {"final": final}).first()
    if row is None:
        raise UsageError(f"no run has an image {final}")
    if row.newest != final:
        raise Superseded(f"{row.sku} has a newer image than {final[:12]}: look at that one", row.newest)
    _held(row)
    about = {"bases": list(bases), "final": final, "by": by, "reason": reason, "batch": batch}
    sent = list(connection.scalars(text(_SEND_BACK), about))
    if final not in sent:
        (there,) = _read(connection, "d.final = :final AND d.undone_at IS NULL", {"final": final})
        raise AlreadyDecided(f"{there.by} decided it before: {there.choice} ({there.sku})", there)
    outcomes.unsettle_images(connection, sent)
    return sent


def affected(engine: Engine, bases: Sequence[str]) -> tuple[int, int]:
    """How many shots stand on a cutout that has one of these bases, and in how many scenes."""
    with engine.connect() as connection:
        row = connection.execute(text(_AFFECTED), {"bases": list(bases)}).one()
        return row.images, row.scenes


@dataclass(frozen=True, slots=True)
class Batch:
    """What a decision about a part of the queue would decide: how many images, a fingerprint of which they are, and
    sha256 of some of them, spread over the whole and the same ones for the same images."""

    count: int
    fingerprint: str
    sample: tuple[str, ...]


def counted(engine: Engine, selection: Selection, sample: int = 0) -> Batch:
    """Counts a part of the queue without its spot checks, and takes a sample of it, in one pass."""
    with engine.connect() as connection:
        return _count(connection, selection, sample)


def undo(engine: Engine, decision: int, by: str) -> Decision:
    """Takes a decision back: the image is in the queue again. What was published for it is withdrawn, and what the
    shot showed before is shown again.

    Raises UsageError for a decision that is not there or was undone, and for one that is being tried again.
    """
    with engine.begin() as connection:
        return _undo(connection, _locked(connection, "d.id = :id", {"id": decision}), by)[0]


def undo_batch(engine: Engine, batch: str, by: str) -> int:
    """Takes back what a batch decided, as `undo` does; returns how many decisions that were."""
    with engine.begin() as connection:
        return len(_undo(connection, _locked(connection, "d.batch = :batch AND d.batch <> ''", {"batch": batch}), by))


def roll_back(engine: Engine, by: str, reason: str, batch: str, publications: Sequence[int] = (), run: str = "") -> int:
    """Takes back images that are shown: those with these numbers, or all of a run. What each shot showed before is
    shown again, and no later run publishes the image: it is rejected. Returns how many images were taken back.

    `batch` names the rejections. If they are undone, the next run may publish the images again. Raises UsageError if
    none of them is shown.
    """
    values = {"ids": list(publications), "in_run": run, "by": by, "reason": reason, "batch": batch}
    with engine.begin() as connection:
        shown = connection.execute(text(_SHOWN), values).all()
        if not shown:
            raise UsageError(f"no image of run {run} is shown" if run else "the image is not shown any more")
        images = {"finals": [row.final for row in shown], "shots": [row.shot for row in shown]}
        connection.execute(text(_OVERRULE), {**values, **images})
        connection.execute(text(_REFUSE), {**values, **images, "runs": [row.run for row in shown]})
        count = _take_back(connection, images["shots"], images["finals"], by)
        outcomes.unsettle_images(connection, images["finals"])
    return count


def decisions_about(engine: Engine, skus: Sequence[str]) -> list[Decision]:
    """Every decision about images of these SKUs, those that were undone too, newest first."""
    with engine.connect() as connection:
        return _read(connection, "s.sku = ANY(CAST(:skus AS text[]))", {"skus": list(skus)})


@dataclass(frozen=True, slots=True)
class DecisionFilter:
    """Which decisions are listed. An empty field selects all; `run` is the run that held the image, and check
    `spot_check` selects answers to spot checks."""

    run: str = ""
    scene: str = ""
    channel: str = ""
    sku: str = ""
    check: str = ""


def list_decisions(engine: Engine, wanted: DecisionFilter) -> Iterator[Decision]:
    """Decisions, those that were undone too, newest first. They are read in parts, in one snapshot."""
    statement = text(_DECISIONS.format(where=_WANTED))
    with engine.connect() as connection:
        found = connection.execution_options(yield_per=2000).execute(statement, asdict(wanted))
        for row in found:
            yield _decision(row)


# ------------------------------------------------------------------------------------------------- what follows


@dataclass(frozen=True, slots=True)
class Approved:
    """An approved image that is not published yet: a shot that `run` held, and the decision about its image."""

    decision: int
    run: str
    scene: str
    channel: str
    shot: int
    sku: str
    final: str


def approved_images(engine: Engine) -> list[Approved]:
    """Approved images that wait for their publication, by run and in the runs' order."""
    with engine.connect() as connection:
        return [Approved(*row) for row in connection.execute(text(_APPROVED))]


def seconds_since_last(engine: Engine) -> float | None:
    """Age in seconds of the newest decision that something must still follow from; None if nothing must."""
    with engine.connect() as connection:
        return connection.scalar(text(_LAST))


def still_approved(connection: Connection, decisions: Sequence[int]) -> set[int]:
    """Which of these decisions still stand. They are locked until the transaction ends, so nobody undoes them."""
    return set(connection.scalars(text(_STILL), {"ids": list(decisions)}))


def note_published(connection: Connection, decisions: Sequence[int], run: str) -> None:
    """Records that `run` published what these decisions approved, and settles these shots."""
    values = {"ids": list(decisions), "run": run}
    connection.execute(text(_ACTED), values)
    shots = connection.scalars(text(_DECIDED_SHOTS), values).all()
    outcomes.settle(connection, run, shots=shots)
    outcomes.settle_shots(connection, run, shots)


@dataclass(frozen=True, slots=True)
class Retry:
    """Products of one scene and channel that are to be generated again, and the id of the run that does it. `choice`
    is RETRY, or EDIT where their cutouts were corrected."""

    run: str
    scene: str
    channel: str
    skus: tuple[str, ...]
    choice: Choice = Choice.RETRY


def claim_retries(engine: Engine, grace_seconds: float = 0.0) -> list[Retry]:
    """Hands every open decision to make a shot again to a run that is about to be started, one a scene, channel and
    choice. Decisions younger than `grace_seconds` are left open."""
    with engine.begin() as connection:
        rows = connection.execute(text(_RETRIES), {"grace": grace_seconds}).all()
    return [Retry(row.acted_run, row.scene, row.channel, tuple(row.skus), Choice(row.choice)) for row in rows]


# ------------------------------------------------------------------------------------------------------ rows


def _held(row: Row) -> str:
    """The image of a shot that a check held. Raises UsageError for any other shot."""
    if row.state != "held":
        raise UsageError(f"{row.sku} is {row.state} in run {row.run}: only a held image is approved")
    if not row.checks:
        raise UsageError(f"{row.sku} passed its checks; the whole publication was stopped: {row.reason}")
    if row.final is None:
        raise UsageError(f"{row.sku} has no image in run {row.run} yet: wait until it was inspected")
    return row.final


def _answers_spot_check(row: Row, choice: Choice) -> None:
    """Raises UsageError for a decision that answers no spot check."""
    if choice not in (Choice.CONFIRM, Choice.REJECT):
        raise UsageError(f"{row.sku} is published: a spot check is answered with right or wrong")


def _read(connection: Connection, where: str, values: dict[str, object]) -> list[Decision]:
    """Decisions, newest first. `where` is a condition of this module, never somebody's words."""
    return [_decision(row) for row in connection.execute(text(_DECISIONS.format(where=where)), values)]


def _decision(row: Row) -> Decision:
    fields = row._asdict()
    return Decision(**{**fields, "choice": Choice(fields["choice"])})


def _locked(connection: Connection, where: str, values: dict[str, object]) -> list[Decision]:
    """Decisions that can be undone, locked. Raises UsageError if there is none."""
    connection.execute(text(_LOCK.format(where=where)), values)
    found = _read(connection, where, values)
    standing = [decision for decision in found if decision.undone_at is None]
    if not standing:
        raise UsageError(f"{found[0].undone_by} undid it before" if found else "there is no such decision")
    if trying := next((d for d in standing if d.choice is Choice.RETRY and d.acted_run), None):
        raise UsageError(f"{trying.sku} is being generated again: run {trying.acted_run}")
    if edited := next((d for d in standing if d.choice is Choice.EDIT), None):
        raise UsageError(f"{edited.sku} is being made again from a corrected cutout: correct it anew if it is wrong")
    return standing


def _undo(connection: Connection, standing: Sequence[Decision], by: str) -> list[Decision]:
    """Undoes locked decisions, and withdraws what was published for them."""
    ids = [decision.id for decision in standing]
    connection.execute(text(_UNDO), {"ids": ids, "by": by})
    shown = [decision for decision in standing if decision.choice is Choice.APPROVE]
    if shown:
        images = {"finals": [decision.final for decision in shown], "by": by}
        for row in connection.execute(text(_HOLDERS), images).all():
            withdraw(connection, row.shots, row.finals, by)
            outcomes.settle(connection, row.run, shots=row.shots)
            outcomes.remember_states(connection, row.run)
    wrong = [d.final for d in standing if d.choice is Choice.REJECT and not d.batch]
    if wrong:
        _show_again(connection, wrong)
    outcomes.unsettle_images(connection, [decision.final for decision in standing])
    return _read(connection, "d.id = ANY(:ids)", {"ids": ids})


def _show_again(connection: Connection, finals: Sequence[str]) -> None:
    """Publishes those of these images again that were withdrawn after a spot check, unless a later run's is shown or
    the product left its feed."""
    back = connection.execute(text(_SHOW_AGAIN), {"finals": list(finals)}).all()
    if not back:
        return
    shots = [row.shot for row in back]
    connection.execute(text("SELECT id FROM shots WHERE id = ANY(:shots) ORDER BY id FOR UPDATE"), {"shots": shots})
    connection.execute(text(_SUPERSEDE), {"shots": shots})
    again = {"shots": shots, "digests": [row.digest for row in back], "runs": [row.run for row in back]}
    connection.execute(text(_PUBLISH_AGAIN), again)
    for row in connection.execute(text(_HOLDERS), {"finals": [row.final for row in back]}).all():
        outcomes.settle(connection, row.run, shots=row.shots)
        outcomes.remember_states(connection, row.run)


def _take_back(connection: Connection, shots: Sequence[int], finals: Sequence[str], by: str) -> int:
    """Withdraws these shots' images, which were rejected; returns how many."""
    count = withdraw(connection, shots, finals, by)
    for row in connection.execute(text(_HOLDERS), {"finals": list(finals)}).all():
        outcomes.settle(connection, row.run, shots=row.shots)
        outcomes.remember_states(connection, row.run)
    return count


def withdraw(connection: Connection, shots: Sequence[int], finals: Sequence[str], by: str) -> int:
    """Withdraws the current image of these shots where it was made of one of these finals. The image before it is
    shown again, if there was one that nobody withdrew or pruned. Returns how many images were withdrawn."""
    values = {"shots": list(shots), "finals": list(finals), "by": by}
    # one publisher at a time for a shot, in the order of `PostgresLedger.publish`
    connection.execute(text("SELECT id FROM shots WHERE id = ANY(:shots) ORDER BY id FOR UPDATE"), values)
    withdrawn = connection.execute(text(_WITHDRAW), values).all()
    connection.execute(text(_RESTORE), {"ids": [row.id for row in withdrawn]})
    return len(withdrawn)


def _count(connection: Connection, selection: Selection, sample: int = 0) -> Batch:
    row = connection.execute(text(_COUNT), {**selection.values(), "sample": sample}).one()
    return Batch(row.images, row.fingerprint, tuple(row.sample))


_OF_SKU = """
SELECT rs.run, rs.shot, rs.state, rs.reason, rs.final, rs.checks, s.sku
FROM shots_of_runs rs JOIN shots s ON s.id = rs.shot WHERE rs.run = :run AND s.sku = :sku
"""

# of the runs that have this image, the newest that held it; `newest` is the shot's newest image of all
_OF_FINAL = """
SELECT rs.run, rs.shot, rs.state, rs.reason, rs.final, rs.checks, s.sku,
       EXISTS (SELECT FROM spot_checks c WHERE c.final = rs.final) AS spot,
       (SELECT later.final FROM run_shots later JOIN runs lr ON lr.id = later.run
        WHERE later.shot = rs.shot AND later.final IS NOT NULL
        ORDER BY lr.started_at DESC, lr.id DESC LIMIT 1) AS newest
FROM run_shots rs JOIN shots s ON s.id = rs.shot JOIN runs r ON r.id = rs.run
WHERE rs.final = :final
ORDER BY rs.state = 'held' DESC, r.started_at DESC, r.id DESC LIMIT 1
"""

_DECIDE = """
INSERT INTO decisions (final, run, shot, choice, reason, by) VALUES (:final, :run, :shot, :choice, :reason, :by)
ON CONFLICT (final) WHERE undone_at IS NULL DO NOTHING RETURNING id
"""

_DECIDE_ALL = f"""
INSERT INTO decisions (final, run, shot, choice, reason, by, batch)
SELECT q.final, q.run, q.shot, :choice, :reason, :by, :batch FROM review_queue q
WHERE {IN_BATCH}
ON CONFLICT (final) WHERE undone_at IS NULL DO NOTHING RETURNING final
"""  # noqa: S608  # no value from outside

_SEND_BACK = """
INSERT INTO decisions (final, run, shot, choice, reason, by, batch)
SELECT DISTINCT ON (q.final) q.final, q.run, q.shot, 'edit', :reason, :by, :batch
FROM review_queue q
WHERE NOT q.spot AND (q.final = :final OR EXISTS (
    SELECT FROM run_steps u JOIN steps st USING (key)
    WHERE u.run = q.run AND u.shot = q.shot AND u.chosen AND u.stage = 'cutout' AND st.base = ANY(:bases)))
ORDER BY q.final, q.started_at DESC
ON CONFLICT (final) WHERE undone_at IS NULL DO NOTHING RETURNING final
"""

_AFFECTED = """
SELECT count(DISTINCT u.shot) AS images, count(DISTINCT s.scene) AS scenes
FROM steps st
JOIN run_steps u ON u.key = st.key AND u.chosen
JOIN run_shots rs ON rs.run = u.run AND rs.shot = u.shot AND rs.until IS NULL
JOIN shots s ON s.id = u.shot
WHERE st.base = ANY(:bases) AND st.stage = 'cutout'
"""

_COUNT = f"""
WITH q AS MATERIALIZED (SELECT DISTINCT q.final FROM review_queue q WHERE {IN_BATCH})
SELECT count(*) AS images, md5(coalesce(string_agg(final, '' ORDER BY final), '')) AS fingerprint,
       ARRAY(SELECT final FROM q ORDER BY md5(final) LIMIT :sample) AS sample
FROM q
"""  # noqa: S608  # no value from outside

_LOCK = "SELECT d.id FROM decisions d WHERE {where} ORDER BY d.id FOR UPDATE"

_DECISIONS = """
SELECT d.id, d.run, s.sku, s.scene, s.channel, d.final, d.choice, coalesce(rs.reason, '') AS held_for, d.reason, d.by,
       d.created_at AS at, d.batch, d.acted_run, d.undone_by, d.undone_at
FROM decisions d
JOIN shots s ON s.id = d.shot
LEFT JOIN run_shots rs ON rs.run = d.run AND rs.shot = d.shot
WHERE {where} ORDER BY d.id DESC
"""

_WANTED = """
(CAST(:run AS text) = '' OR d.run = :run)
  AND (CAST(:scene AS text) = '' OR s.scene = :scene)
  AND (CAST(:channel AS text) = '' OR s.channel = :channel)
  AND (CAST(:sku AS text) = '' OR s.sku = :sku)
  AND (CAST(:check AS text) = '' OR CAST(:check AS text) = ANY(rs.checks)
       OR :check = 'spot_check' AND EXISTS (SELECT FROM spot_checks c WHERE c.final = d.final))
"""

_APPROVED = """
SELECT d.id, rs.run, s.scene, s.channel, rs.shot, s.sku, d.final
FROM decisions d
JOIN run_shots rs ON rs.final = d.final AND rs.state = 'held'
JOIN shots s ON s.id = rs.shot
JOIN runs r ON r.id = rs.run
JOIN products p ON p.sku = s.sku AND p.left_at IS NULL
WHERE d.choice = 'approve' AND d.undone_at IS NULL AND d.acted_run IS NULL AND r.state <> 'running'
ORDER BY r.started_at, rs.run, rs.position
"""

_LAST = """
SELECT CAST(extract(epoch FROM now() - max(d.created_at)) AS double precision) FROM decisions d
LEFT JOIN runs r ON r.id = d.run
WHERE d.undone_at IS NULL AND d.acted_run IS NULL
  AND (d.choice IN ('retry', 'edit') OR (d.choice = 'approve' AND r.state <> 'running'))
"""

_STILL = "SELECT id FROM decisions WHERE id = ANY(:ids) AND undone_at IS NULL ORDER BY id FOR UPDATE"

_ACTED = "UPDATE decisions SET acted_run = :run WHERE id = ANY(:ids) AND acted_run IS NULL"

_DECIDED_SHOTS = """
SELECT rs.shot FROM decisions d JOIN run_shots rs ON rs.final = d.final WHERE d.id = ANY(:ids) AND rs.run = :run
"""

_RETRIES = """
WITH mine AS (
    UPDATE decisions d SET acted_run = d.choice || '__' || s.scene || '__' || s.channel || '__' || newest.id
    FROM shots s, LATERAL (
        SELECT max(o.id) AS id FROM decisions o
        WHERE o.choice IN ('retry', 'edit') AND o.undone_at IS NULL AND o.acted_run IS NULL
    ) newest
    WHERE s.id = d.shot AND d.choice IN ('retry', 'edit') AND d.undone_at IS NULL AND d.acted_run IS NULL
      AND d.created_at <= now() - make_interval(secs => :grace)
    RETURNING d.acted_run, s.scene, s.channel, s.sku, d.choice
)
SELECT acted_run, scene, channel, choice, array_agg(DISTINCT sku ORDER BY sku) AS skus
FROM mine GROUP BY acted_run, scene, channel, choice ORDER BY 1
"""

_UNDO = "UPDATE decisions SET undone_by = :by, undone_at = now() WHERE id = ANY(:ids)"

_HOLDERS = """
SELECT rs.run, array_agg(rs.shot) AS shots, array_agg(rs.final) AS finals
FROM run_shots rs WHERE rs.final = ANY(:finals) GROUP BY rs.run ORDER BY rs.run
"""

_SHOWN = """
SELECT DISTINCT ON (p.id) p.id, p.shot, p.run, i.digest AS final
FROM publications p
JOIN step_outputs o ON o.digest = p.digest AND o.role = 'published'
JOIN step_inputs i ON i.key = o.key AND i.role = 'final'
WHERE p.superseded_at IS NULL
  AND (p.id = ANY(CAST(:ids AS bigint[])) OR CAST(:in_run AS text) <> '' AND p.run = :in_run)
ORDER BY p.id
"""

_OVERRULE = """
UPDATE decisions SET undone_by = :by, undone_at = now()
WHERE final = ANY(:finals) AND undone_at IS NULL AND choice <> 'reject'
"""

_REFUSE = """
INSERT INTO decisions (final, run, shot, choice, reason, by, batch)
SELECT final, run, shot, 'reject', :reason, :by, :batch
FROM unnest(CAST(:finals AS text[]), CAST(:runs AS text[]), CAST(:shots AS bigint[])) AS shown (final, run, shot)
ON CONFLICT (final) WHERE undone_at IS NULL DO NOTHING
"""

_WITHDRAW = """
UPDATE publications p SET superseded_at = now(), withdrawn_by = :by
WHERE p.shot = ANY(:shots) AND p.superseded_at IS NULL
  AND EXISTS (SELECT FROM step_outputs o JOIN step_inputs i ON i.key = o.key AND i.role = 'final'
              WHERE o.digest = p.digest AND o.role = 'published' AND i.digest = ANY(:finals))
RETURNING p.id
"""

_SHOW_AGAIN = """
SELECT DISTINCT ON (p.shot) p.shot, p.digest, p.run, i.digest AS final
FROM spot_checks c
JOIN step_inputs i ON i.digest = c.final AND i.role = 'final'
JOIN step_outputs o ON o.key = i.key AND o.role = 'published'
JOIN publications p ON p.digest = o.digest AND p.shot = c.shot AND p.withdrawn_by IS NOT NULL
JOIN runs r ON r.id = p.run
JOIN shots s ON s.id = p.shot
JOIN products of_shot ON of_shot.sku = s.sku AND of_shot.left_at IS NULL
WHERE c.final = ANY(:finals)
  AND NOT EXISTS (SELECT FROM publications now JOIN runs nr ON nr.id = now.run
                  WHERE now.shot = p.shot AND now.superseded_at IS NULL AND nr.started_at > r.started_at)
ORDER BY p.shot, p.id DESC
"""

_SUPERSEDE = """
UPDATE publications SET superseded_at = now() WHERE shot = ANY(:shots) AND superseded_at IS NULL
"""

_PUBLISH_AGAIN = """
INSERT INTO publications (shot, digest, run)
SELECT * FROM unnest(CAST(:shots AS bigint[]), CAST(:digests AS text[]), CAST(:runs AS text[]))
"""

_RESTORE = """
INSERT INTO publications (shot, digest, run)
SELECT before.shot, before.digest, before.run
FROM publications gone
CROSS JOIN LATERAL (
    SELECT p.* FROM publications p
    WHERE p.shot = gone.shot AND p.id < gone.id AND p.withdrawn_by IS NULL AND p.digest <> gone.digest
      AND NOT EXISTS (SELECT FROM publications w WHERE w.shot = p.shot AND w.digest = p.digest
                      AND w.withdrawn_by IS NOT NULL AND w.id > p.id)
      AND NOT EXISTS (SELECT FROM step_outputs o JOIN lost_steps l USING (key) WHERE o.digest = p.digest AND l.pruned)
    ORDER BY p.id DESC LIMIT 1
) before
WHERE gone.id = ANY(:ids)
"""
