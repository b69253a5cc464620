"""The ledger that runs share, in Postgres: steps, the runs that used them, and publications.

Reports and lineage are in `pipelines.ledger.reports`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, cast

import psycopg2.errors
from more_itertools import chunked
from sqlalchemy import Connection, Engine, and_, bindparam, create_engine, exists, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.pool import NullPool

from pipelines.catalogue.manifest import Line
from pipelines.contracts import (
    FINISHED,
    Artifact,
    Changes,
    Product,
    Publication,
    Shot,
    ShotState,
    ShotStep,
    State,
    Step,
    canonical_json,
    sha256_hex,
)
from pipelines.errors import IntegrityError, UsageError
from pipelines.ledger import lost, outcomes, publishing, rows, selection, shown, waves
from pipelines.ledger.decisions import note_published, send_back_edited, still_approved
from pipelines.ledger.schema import (
    artifacts,
    product_versions,
    products,
    run_artifacts,
    run_shots,
    runs,
    scenes,
    shots,
    steps,
)

_SHOTS = (
    select(product_versions, run_shots.c.row, shots.c.scene, shots.c.channel)
    .join_from(run_shots, shots, run_shots.c.shot == shots.c.id)
    .join(product_versions, run_shots.c.version == product_versions.c.id)
)

CLAIM_POLL_MS = 2000
"""A wait for a claim returns to Python this often, so that a task's time limit and SIGTERM are heard."""


def connect(url: str) -> Engine:
    """An engine on the ledger's database. Connections are tested before use and carry packshot's name.

    Raises UsageError if `url` is empty, as before the first `packshot up`, or no address of a database.
    """
    try:
        address = make_url(url)
        return create_engine(
            address,
            pool_size=4,
            pool_pre_ping=True,
            executemany_mode="values_plus_batch",  # upserts of many rows in few round trips
            json_serializer=canonical_json,
            connect_args={
                "application_name": "packshot",
                "connect_timeout": 10,
                "options": _options(address, "-c timezone=UTC"),
            },
        )
    except (ArgumentError, ValueError):
        why = (
            "is no address of a Postgres database"
            if url
            else "is not set, and the embedded Postgres was never started here"
        )
        # not from the error, whose text has the URL in it, password and all
        raise UsageError(f"PACKSHOT_DATABASE_URL {why}; `packshot up` starts one") from None


def _options(address: URL, own: str) -> str:
    """Postgres' options: those of the address, such as a search_path, and ours."""
    given = address.query.get("options", "")
    return " ".join([*([given] if isinstance(given, str) else given), own]).strip()


class PostgresLedger:
    """The ledger in Postgres. Cheap to make; make it after a fork, not before."""

    def __init__(self, engine: Engine):
        self.engine = engine
        # A claim outlives transactions and must end with its holder. It has a connection of its own, never pooled;
        # keepalives tell Postgres within a minute that the holder's machine is gone.
        self._claims = create_engine(
            engine.url,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={
                "application_name": "packshot claim",
                "connect_timeout": 10,
                "options": _options(
                    engine.url,
                    "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
                    f" -c lock_timeout={CLAIM_POLL_MS}",
                ),
            },
        )

    # ------------------------------------------------------------------ steps

    def find(self, keys: Sequence[str]) -> dict[str, Step]:
        """Returns finished steps (`done` and `rejected`) by requested key. A key without an attempt returns the newest
        step among all its attempts; a key with an attempt returns only that one."""
        with self.engine.connect() as connection:
            newest = rows.newest_keys(connection, keys, FINISHED)
            found = rows.read_steps(connection, sorted(set(newest.values())), FINISHED)
        return {wanted: found[key] for wanted, key in newest.items()}

    @contextmanager
    def claim(self, keys: Sequence[str]) -> Iterator[None]:
        """Locks these keys: any other claim on one of them waits. The lock ends with this process at the latest."""
        with self._claims.connect() as connection:
            for lock in sorted({_lock_id(key) for key in keys}):  # one order for everybody: no deadlock
                _wait_for(connection, lock)
            yield

    def record(self, step: Step, run: str = "") -> Step:
        """Writes a step, as computed by `run`, in one transaction. Returns the first committed result of its key.

        A later result replaces a `failed` one. Raises ValueError for parameters and facts that are no JSON.
        """
        with self.engine.begin() as connection:
            return self._record(connection, step, run)

    def _record(self, connection: Connection, step: Step, run: str) -> Step:
        rows.insert_missing(connection, artifacts, [rows.artifact_row(artifact) for artifact in step.outputs])
        row = rows.step_row(step, run)
        statement = insert(steps).values(row)
        won = connection.execute(
            statement.on_conflict_do_update(
                index_elements=[steps.c.key],
                set_={name: statement.excluded[name] for name in row} | {"created_at": func.now()},
                where=steps.c.state == State.FAILED,
            ).returning(steps.c.key)
        ).first()
        if won is None:
            recorded = rows.read_steps(connection, [step.key], tuple(State))[step.key]
            counts = lost.made_again(connection, recorded, step)
            return counts if counts.key == step.key else self._record(connection, counts, run)
        rows.write_parts(connection, step)
        if step.job.attempt:
            outcomes.unsettle_steps(connection, step)
        return step

    def correct(self, step: Step, bases: Sequence[str], final: str, by: str, reason: str, batch: str) -> list[str]:
        """Records a cutout that a person made of the held image `final`, and sends back every held image that stands on
        a cutout with one of these bases (`decisions.send_back_edited`): all of it or nothing. Returns these images."""
        with self.engine.begin() as connection:
            sent = send_back_edited(connection, bases, final, by, reason, batch)
            self._record(connection, step, "")
        return sent

    def use(self, run: str, uses: Sequence[tuple[Shot, Sequence[ShotStep]]]) -> None:
        """Records which steps this run used for these shots (idempotent). A step that this run computed counts as
        computed, also if the task was killed and its retry found the step."""
        with self.engine.begin() as connection:
            rows.write_uses(connection, run, [(shot, used) for shot, tried in uses for used in tried])

    def chosen(
        self, run: str, shots: Sequence[Shot], stages: Sequence[str] | None = None
    ) -> dict[str, dict[str, Step]]:
        """SKU → stage → the chosen step of this run, or of the run before it that left the shot as it is.
        `stages` are those that are asked for, all by default."""
        found: dict[str, dict[str, Step]] = defaultdict(dict)
        if stages is not None and not stages:
            return {}
        with self.engine.connect() as connection:
            keys = rows.chosen_keys(connection, run, shots, stages)
            own = {sku for sku, _ in keys}
            keys += rows.inherited_keys(connection, run, [shot for shot in shots if shot.sku not in own], stages)
            by_key = rows.read_steps(connection, sorted({key for _, key in keys}), tuple(State))
        for sku, key in keys:
            found[sku][by_key[key].job.stage] = by_key[key]
        return dict(found)

    # ------------------------------------------------------------------- runs

    def start_run(
        self,
        run: str,
        dag_id: str,
        scene: str,
        channel: str,
        feed: str = "",
        params: Mapping[str, Any] | None = None,
        triggered_by: str = "",
    ) -> None:
        """Opens a run, or reopens it when `plan` is retried. Raises IntegrityError if another DAG has the id."""
        row = {
            "id": run,
            "dag_id": dag_id,
            "scene": scene,
            "channel": channel,
            "feed": feed,
            "params": dict(params or {}),
            "triggered_by": triggered_by,
            "state": "running",
        }
        with self.engine.begin() as connection:
            opened = connection.execute(
                insert(runs)
                .values(row)
                .on_conflict_do_update(
                    index_elements=[runs.c.id],
                    set_={name: row[name] for name in row if name != "id"}
                    | {"finished_at": None, "problem": None, "totals": None},
                    where=runs.c.dag_id == dag_id,
                )
                .returning(runs.c.id)
            ).first()
        if opened is None:
            raise IntegrityError(f"run {run!r} belongs to another DAG than {dag_id}")

    def attach(self, run: str, artifact: Artifact) -> None:
        """Attaches a document to a run, under its role. A later document replaces one of the same role."""
        with self.engine.begin() as connection:
            rows.insert_missing(connection, artifacts, [rows.artifact_row(artifact)])
            row = {"run": run, "role": artifact.role, "digest": artifact.sha256}
            connection.execute(
                insert(run_artifacts)
                .values(row)
                .on_conflict_do_update(
                    index_elements=[run_artifacts.c.run, run_artifacts.c.role],
                    set_={"digest": artifact.sha256, "created_at": func.now()},
                )
            )

    def record_scene(self, name: str, definition: Mapping[str, Any]) -> str:
        """Stores a scene's definition as it was used; returns its digest."""
        digest = sha256_hex(canonical_json(dict(definition)).encode())
        with self.engine.begin() as connection:
            rows.insert_missing(connection, scenes, [{"digest": digest, "name": name, "definition": dict(definition)}])
        return digest

    def upsert_products(
        self,
        items: Iterable[Line] | Sequence[Product],
        now: datetime | None = None,
        feed: str = "",
        accept_loss: bool = False,
        additional_photos: int = 0,
    ) -> Changes:
        """Updates the products to a feed. A product that differs gets a new version, dated `now`.

        `feed` names a whole feed: what it had at its last reading and has no more has left it. Raises UsageError if
        that is more than a fifth of it, unless `accept_loss`. So many `additional_photos` of a product were looked for.
        """
        lines = [Line.of(item) for item in items if isinstance(item, Product)] or cast("Iterable[Line]", items)
        with self.engine.begin() as connection:
            return selection.upsert(connection, lines, now or datetime.now(UTC), feed, accept_loss, additional_photos)

    def refresh(
        self, run: str, lines: Iterable[Line], scene: str, channel: str, line: str, recipe: str, forced: bool = False
    ) -> selection.Selected:
        """Selects these products for the run, in this order, and writes rows for what differs from the runs of its line
        before it. `recipe` is the fingerprint of what decides besides the products. Raises IntegrityError for a product
        that was not upserted."""
        with self.engine.begin() as connection:
            return selection.refresh(connection, run, lines, scene, channel, line, recipe, forced)

    def to_look_at(self, run: str) -> Iterator[tuple[list[int], list[Shot]]]:
        """Positions and shots of the run that do not stand as an earlier run left them, some hundred at a time."""
        after = -1
        statement = (
            _SHOTS.add_columns(run_shots.c.position)
            .where(run_shots.c.run == run, run_shots.c.position > bindparam("after"))
            .order_by(run_shots.c.position)
            .limit(rows.CHUNK)
        )
        while True:
            with self.engine.connect() as connection:
                found = connection.execute(statement, {"after": after}).all()
            if not found:
                return
            after = found[-1].position
            yield [row.position for row in found], [rows.shot_of(row) for row in found]

    def cut_shards(self, run: str, positions: Sequence[int], size: int) -> int:
        """Puts these of the run's shots into shards of `size`; the others need no stage. Returns how many."""
        with self.engine.begin() as connection:
            return selection.cut(connection, run, positions, size)

    def put_off(self, run: str, positions: Sequence[int]) -> int:
        """Leaves these of the run's shots to its next wave; returns how many. None where a later run builds on it."""
        with self.engine.begin() as connection:
            return waves.put_off(connection, run, positions)

    def adopt_unsettled(self, run: str) -> None:
        """Makes those shots the run's own that an earlier run left it and that are settled no more, with their steps:
        somebody decided about a held image since."""
        with self.engine.begin() as connection:
            selection.adopt_unsettled(connection, run)

    def select(self, run: str, selected: Sequence[Shot], shard_size: int) -> int:
        """Selects these shots, in this order, for the run; returns the number of shards of `shard_size` shots.

        Raises IntegrityError for a product that was not upserted. A second call replaces the first.
        """
        with self.engine.begin() as connection:
            outcomes.remove_shots(connection, run)
            rows.add_shots(connection, selected)
            rows.place_shots(connection, run, selected, shard_size)
            # without fresh statistics Postgres expects one row for this run, and settles it with nested loops
            connection.execute(text("ANALYZE run_shots"))
            connection.execute(update(runs).where(runs.c.id == run).values(selected=len(selected)))
        return -(-len(selected) // shard_size)

    def shots(self, run: str, shard: int | None = None, skus: Sequence[str] | None = None) -> list[Shot]:
        """The run's shots (of one shard, or of these SKUs) in order, with their products as they were when the run
        began. A shard has only shots that the run works on; otherwise those that did not change are there too."""
        if shard is not None:
            statement = _SHOTS.where(run_shots.c.run == run, run_shots.c.shard == shard).order_by(run_shots.c.position)
        else:
            all_of = rows.shots_of_runs
            statement = (
                select(product_versions, all_of.c.row, shots.c.scene, shots.c.channel)
                .join_from(all_of, shots, all_of.c.shot == shots.c.id)
                .join(product_versions, all_of.c.version == product_versions.c.id)
                .where(all_of.c.run == run)
                .order_by(all_of.c.row, all_of.c.position)
            )
        if skus is not None:
            statement = statement.where(shots.c.sku.in_(skus))
        with self.engine.connect() as connection:
            return [rows.shot_of(row) for row in connection.execute(statement)]

    def shots_at(self, run: str, positions: Sequence[int]) -> list[Shot]:
        """The shots at these positions of what the run has to look at, in order."""
        own = _SHOTS.where(run_shots.c.run == run, run_shots.c.position.in_(positions)).order_by(run_shots.c.position)
        with self.engine.connect() as connection:
            return [rows.shot_of(row) for row in connection.execute(own)]

    def has_shots(self, run: str) -> bool:
        """Whether the run selected any product."""
        found = select(rows.shots_of_runs.c.shot).where(rows.shots_of_runs.c.run == run)
        with self.engine.connect() as connection:
            return bool(connection.scalar(select(found.exists())))

    def products_changed_between(
        self,
        start: datetime,
        end: datetime,
        skus: Sequence[str] = (),
    ) -> list[Product]:
        """Products that were new or changed in [start, end), in their current version and in feed order, and their
        additional photos of which that is true. With `skus`, the products of these SKUs with all photos, whenever they
        changed. What left its feed is never among them."""
        statement = (
            select(product_versions, products.c.row)
            .join_from(products, product_versions, products.c.version == product_versions.c.id)
            .where(products.c.left_at.is_(None))
            .order_by(products.c.row, product_versions.c.photo_number, products.c.sku)
        )
        if skus:
            photo_of = product_versions.c.photo_of
            statement = statement.where(or_(products.c.sku.in_(skus), and_(photo_of != "", photo_of.in_(skus))))
        else:
            then = product_versions.alias("then")
            statement = statement.where(
                exists().where(then.c.sku == products.c.sku, then.c.changed_at >= start, then.c.changed_at < end)
            )
        with self.engine.connect() as connection:
            return [rows.product_of(row) for row in connection.execute(statement)]

    def last_outcomes(self, scene: str, channel: str, skus: Sequence[str], before: str = "") -> dict[str, ShotState]:
        """SKU → state of its shot in the last run that settled it. Only runs that began before run `before` count."""
        began = select(runs.c.started_at).where(runs.c.id == before).scalar_subquery()
        statement = (
            select(shots.c.sku, run_shots.c.state)
            .distinct(shots.c.sku)
            .join_from(run_shots, shots, run_shots.c.shot == shots.c.id)
            .join(runs, run_shots.c.run == runs.c.id)
            .where(shots.c.scene == scene, shots.c.channel == channel)
            .where(run_shots.c.state != ShotState.PENDING, or_(began.is_(None), runs.c.started_at < began))
            .order_by(shots.c.sku, runs.c.started_at.desc())
        )
        found: dict[str, ShotState] = {}
        with self.engine.connect() as connection:
            for chunk in chunked(skus, rows.CHUNK):
                for row in connection.execute(statement.where(shots.c.sku.in_(chunk))):
                    found[row.sku] = ShotState(row.state)
        return found

    def publish(self, run: str, images: Sequence[Publication]) -> int:
        """Makes these the current images of their shots: all or, on any error, none. Returns how many are new.

        An image that is already current stays. A run supersedes the runs that began before it, in whatever order they
        end: if a later run's image is current, it stays, and this run's image is recorded as superseded. An image of
        a product that left its feed is not published.
        """
        with self.engine.begin() as connection:
            return publishing.publish(connection, run, images)

    def withdraw(self, digests: Sequence[str]) -> int:
        """Takes back the steps that made these lost objects, so that they are made anew. Returns how many steps."""
        with self.engine.begin() as connection:
            return lost.withdraw(connection, digests)

    def withdraw_gone(self) -> int:
        """Withdraws what is shown of products that left their feed, in every scene and channel. Returns how many images
        that were."""
        with self.engine.begin() as connection:
            return shown.withdraw_gone(connection)

    def publish_approved(self, run: str, images: Sequence[tuple[int, Publication]]) -> int:
        """Publishes images that `run` made and that persons approved, as `publish` does. Each comes with the number of
        its decision. Returns how many are new. An image of a decision that was undone meanwhile is left out."""
        with self.engine.begin() as connection:
            standing = still_approved(connection, [number for number, _ in images])
            new = publishing.publish(connection, run, [image for number, image in images if number in standing])
            note_published(connection, sorted(standing), run)
            outcomes.remember_totals(connection, run)
        return new

    def showing(self, run: str, numbers: Sequence[int]) -> list[str]:
        """The run itself, and the newest ended run that has one of these shots as `run` left it, if there is one."""
        with self.engine.connect() as connection:
            return [run, *connection.scalars(text(_SHOWING), {"run": run, "shots": list(numbers)})]

    def settle(self, run: str, shard: int | None = None) -> None:
        """Sets every shot's state and reason (of one shard) from the run's steps, verdicts and publications so far."""
        with self.engine.begin() as connection:
            outcomes.settle(connection, run, shard)

    def finish_run(self, run: str, state: str, problem: Mapping[str, Any] | None = None) -> None:
        """Closes a run as `success` or `failed`.

        `problem` describes what stopped publication. Its `reason` becomes that of every shot that was ready. A shot
        that did not pass all stages ends as failed. A failed run without a `problem` keeps the failed task that was
        noted (`pipelines.ledger.endings`).
        """
        kept = runs.c.problem if state == "failed" else None
        with self.engine.begin() as connection:
            outcomes.settle(connection, run)
            outcomes.settle_shots(connection, run)
            outcomes.close(connection, run, problem["reason"] if problem else None)
            connection.execute(
                update(runs)
                .where(runs.c.id == run)
                .values(state=state, finished_at=func.now(), problem=dict(problem) if problem else kept)
            )
            outcomes.remember_totals(connection, run)

    def rates(self) -> dict[str, float]:
        """Mean seconds a shot, by stage, over the last 500 computed steps. Candidates that were not chosen count."""
        with self.engine.connect() as connection:
            return outcomes.rates(connection)


# ---------------------------------------------------------------------- publications

# A run that still works writes its feed when it publishes.
_SHOWING = """
SELECT later.id
FROM runs own
JOIN runs later ON later.line = own.line AND own.line <> '' AND later.number > own.number
WHERE own.id = :run AND later.state <> 'running' AND later.channel <> '' AND EXISTS (
    SELECT FROM run_shots rs WHERE rs.run = own.id AND rs.shot = ANY(CAST(:shots AS bigint[]))
      AND (rs.until IS NULL OR rs.until > later.number))
ORDER BY later.number DESC LIMIT 1
"""


# ---------------------------------------------------------------------- claims


def _lock_id(key: str) -> int:
    """The first 64 bits of the key as the signed integer that advisory locks are named by."""
    return int.from_bytes(bytes.fromhex(key[:16]), "big", signed=True)


def _wait_for(connection: Connection, lock: int) -> None:
    while True:
        try:
            connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": lock})
            return
        except OperationalError as error:
            if not isinstance(error.orig, psycopg2.errors.LockNotAvailable):
                raise
